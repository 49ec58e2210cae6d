"""What a rank does that follows, when rank 0's run fails before or after it was loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from research.errors import ConfigurationError, TrainingError
from services.trainer import processes
from services.trainer.learner import team
from services.trainer.parallel.ranks import Ranks
from tests.support.tiny_model import tiny_settings


class Told:
    """A group in which rank 0 says these words, one after the other."""

    rank, world, is_alone = 1, 2, False

    def __init__(self, *words: bytes) -> None:
        self.words = list(words)
        self.left = False

    def tell(self, text: bytes | None) -> bytes:
        assert text is None
        return self.words.pop(0)

    def together(self, work: Callable[[], None]) -> None:
        work()

    def confirm_end(self) -> None:
        pass

    def leave(self) -> None:
        self.left = True

    @contextmanager
    def naming_the_lost(self, task: str) -> Iterator[None]:
        yield


class Follower:
    """In place of a learner; what it is told to do is kept."""

    def __init__(self, *_: Any) -> None:
        MADE.append(self)
        self.updates: list[int] = []

    def set_torch_threads(self) -> None:
        pass

    def set_updates(self, updates: int) -> None:
        self.updates.append(updates)


MADE: list[Follower] = []


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    MADE.clear()
    monkeypatch.setattr(team, "Learner", Follower)
    monkeypatch.setattr(team, "local_checkpoint", lambda name, data: tmp_path)
    return tiny_settings(tmp_path).model_dump_json().encode()


def follow(*words: bytes) -> Told:
    told = Told(*words)
    try:
        processes._follow_runs(cast(Ranks, told))
    finally:
        assert not told.words
    return told


def test_one_run_after_the_other(settings: bytes) -> None:
    told = follow(settings, b'["set_updates",[3]]', b'["end",[]]', settings, b'["set_updates",[4]]', b'["end",[]]', b"")
    assert [each.updates for each in MADE] == [[3], [4]]
    assert told.left


def test_a_run_that_fails_before_its_first_order_is_followed_by_the_next(settings: bytes) -> None:
    follow(settings, settings, b'["set_updates",[4]]', b'["end",[]]', b"")
    assert [each.updates for each in MADE] == [[], [4]]


@pytest.mark.parametrize("word", [b"", b"failed"], ids=["ended", "failed"])
def test_rank_0_may_leave_in_the_middle_of_a_run(settings: bytes, word: bytes) -> None:
    if not word:
        assert follow(settings, word).left
        return
    with pytest.raises(TrainingError, match="rank 0 ended before the run did"):
        follow(settings, word)


def test_a_model_that_cannot_be_loaded_ends_the_run_and_not_the_rank(
    settings: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ConfigurationError("lora.targets: no such layers")

    with monkeypatch.context() as patched:
        patched.setattr(team, "Learner", refuse)
        assert follow(settings, b"").left
    assert MADE == []


def test_no_limit_stays_no_limit_for_the_others(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, "optimizer.max_grad_norm=inf")
    assert type(settings).model_validate_json(settings.model_dump_json()) == settings
