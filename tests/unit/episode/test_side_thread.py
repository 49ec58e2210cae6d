"""Short work off the event loop: results and errors reach whoever waits, also after others went away."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from research.episode.side_thread import in_side_thread


def together(*work: Callable[[], Any]) -> list[Any]:
    """What each returns or raises, all asked at once."""

    async def gathered() -> list[Any]:
        return await asyncio.gather(*map(in_side_thread, work), return_exceptions=True)

    return asyncio.run(gathered())


def test_each_gets_its_own_result_from_one_other_thread() -> None:
    done = together(*(partial(lambda number: (number, threading.get_ident()), number) for number in range(200)))
    assert [number for number, _ in done] == list(range(200))
    assert len({thread for _, thread in done}) == 1
    assert done[0][1] != threading.get_ident()


def test_an_error_reaches_its_own_waiter_alone() -> None:
    good, bad = together(lambda: "good", lambda: [][0])
    assert good == "good"
    assert isinstance(bad, IndexError)


def test_one_that_no_longer_waits_harms_no_other() -> None:
    async def give_up() -> str:
        may_go_on = threading.Event()
        given_up = asyncio.create_task(in_side_thread(lambda: may_go_on.wait(10)))
        other = asyncio.create_task(in_side_thread(lambda: "other"))
        await asyncio.sleep(0)
        given_up.cancel()
        may_go_on.set()
        return await other

    assert asyncio.run(give_up()) == "other"


def test_loops_that_ended_are_forgotten() -> None:
    may_go_on = threading.Event()

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(in_side_thread(lambda: may_go_on.wait(10)), 0.01)

    asyncio.run(leave())
    may_go_on.set()
    assert asyncio.run(in_side_thread(lambda: "next")) == "next"
