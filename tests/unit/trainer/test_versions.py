"""Which versions of the weights may have written an episode, and who may change the served ones."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.trainer.rollout.versions import Versions, WrongWeightsError
from tests.support.scored import answered


def test_only_weights_of_the_run_may_have_written_an_episode() -> None:
    versions = Versions(lambda: 5, max_staleness=2, first=1)
    for allowed in ("1", "3", "5", "6"):  # what is too old is dropped when it would be trained on; 6 is on its way
        versions.require(replace(answered("Paris"), versions=[allowed, "", allowed]))
    for other in ("0", "7", "base"):
        with pytest.raises(WrongWeightsError, match=f"weight version {other}, which is not this run's"):
            versions.require(replace(answered("Paris"), versions=["5", "", other]))
    assert versions.staleness(replace(answered("Paris"), versions=["4", "", "5"])) == 1
    # After a kill: 8 will be made again, if two more steps take again what they took.
    later = replace(answered("Paris"), versions=["5", "", "8"])
    assert versions.allow(later, ahead=2)
    assert not versions.allow(later, ahead=1)
    assert not versions.holds(later)
    assert [versions.holds(replace(answered("Paris"), versions=[v, "", "5"])) for v in ("2", "3")] == [False, True]
    assert not versions.allow(replace(answered("Paris"), versions=["", "", ""]))


def test_a_publication_and_a_reconciliation_exclude_each_other(tmp_path: Path) -> None:
    from services.trainer.weights.publisher import Publisher

    class Replicas:
        """Notes what it is asked to deliver; an update takes until it is let go."""

        def __init__(self) -> None:
            self.sync, self.seen, self.let_go = self, list[str](), asyncio.Event()

        async def stage(self, *_: Any) -> None: ...

        async def keep(self, *_: Any) -> None: ...

        async def update(self, request: Any) -> float:
            await self.let_go.wait()
            self.seen.append(f"update {request.version}")
            return 0.0

        async def reconcile(self, request: Any) -> None:
            self.seen.append(f"reconcile {request.version}")

    async def work() -> None:
        replicas = Replicas()
        publisher = Publisher(tmp_path, tmp_path, replicas, "")  # type: ignore[arg-type]
        publisher.version = 4
        publishing = asyncio.create_task(publisher.publish(None, 5))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        checking = asyncio.create_task(publisher.reconcile())
        await asyncio.sleep(0)
        assert not replicas.seen
        replicas.let_go.set()
        await asyncio.gather(publishing, checking)
        assert replicas.seen == ["update 5", "reconcile 5"]  # the former version would have undone the update

    asyncio.run(work())
