"""Episodes through JSON and through the journal: exact, and never another question's or other weights'."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from research.episode.agent import BranchPoint, Episode, StopReason, Turn
from research.episode.serialization import episode_from_dict
from research.errors import ProtocolError, TrainingError
from research.passages import Passage
from research.questions import Question
from research.scoring.reward import Score
from services.trainer.groups import Group, Member, TrainingUse
from services.trainer.rollout.journal import EpisodeJournal
from services.trainer.run_dir.run_dir import RunDirectory

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
PASSAGES = st.builds(Passage, st.text(), st.text(), st.text())
TURNS = st.builds(Turn, st.text(), st.none() | st.text(), st.lists(PASSAGES, max_size=3), st.text())


@st.composite
def episodes(draw: st.DrawFn) -> Episode:
    length = draw(st.integers(0, 12))

    def stream(of: st.SearchStrategy) -> list:  # type: ignore[type-arg]
        return draw(st.lists(of, min_size=length, max_size=length))

    return Episode(
        question=draw(st.text()),
        prompt_ids=draw(st.lists(st.integers(0, 2**31))),
        token_ids=stream(st.integers(0, 2**31)),
        sampled=stream(st.booleans()),
        logprobs=stream(FLOATS),
        versions=stream(st.text(max_size=3)),
        turns=draw(st.lists(TURNS, max_size=3)),
        stop_reason=draw(st.sampled_from(StopReason)),
        generate_seconds=draw(FLOATS),
        search_seconds=draw(FLOATS),
        branched_from=draw(st.none() | st.builds(BranchPoint, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))),
    )


def bits(values: list[float]) -> bytes:
    return struct.pack(f"{len(values)}d", *values)


@given(episodes())
def test_an_episode_survives_json_bit_for_bit(episode: Episode) -> None:
    again = episode_from_dict(json.loads(orjson.dumps(episode)))
    assert again == episode
    assert episode_from_dict(json.loads(json.dumps(asdict(episode)))) == episode  # as runs before 2026-11-26 wrote it
    assert bits(again.logprobs) == bits(episode.logprobs)  # == would take -0.0 for 0.0
    assert isinstance(again.stop_reason, StopReason)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_stays_so(tmp_path: Path, wrong: float) -> None:
    journal, bad = EpisodeJournal(tmp_path), replace(sampled("Q0", "3", "3"), logprobs=[wrong, -0.5])
    journal.add(7, 0, 0, bad)
    kept, fine = journal.recorded(7, {0: "Q0"}, of("3"))[0, 0].logprobs
    assert not math.isfinite(kept)
    assert fine == -0.5


def test_many_threads_may_add_at_a_time(tmp_path: Path) -> None:
    journal, episode = EpisodeJournal(tmp_path), sampled("Q0", *["3"] * 2000)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda member: journal.add(7, 0, member, episode), range(64)))
    assert journal.recorded(7, {0: "Q0"}, of("3")) == {(0, member): episode for member in range(64)}


@pytest.mark.parametrize(
    "change",
    [
        {"stop_reason": "bored"},
        {"turns": [{"text": "no passages"}]},
        {"turns": [{"text": "", "passages": [{"id": "1"}]}]},
        {"turns": None},
        {"surplus": 1},
        {"branched_from": {"member": 0}},
        {"logprobs": []},
    ],
)
def test_what_is_no_episode_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="not an episode record"):
        episode_from_dict({**asdict(sampled("Q?", "1")), **change})


def of(version: str) -> Callable[[Episode], bool]:
    """Whether these weights alone wrote an episode."""
    return lambda episode: episode.weight_versions == [version]


def sampled(question: str, *versions: str) -> Episode:
    count = len(versions)
    return Episode(
        question=question,
        prompt_ids=[1, 2],
        token_ids=list(range(count)),
        sampled=[bool(version) for version in versions],
        logprobs=[-0.1 * i for i in range(count)],
        versions=list(versions),
        turns=[Turn("<search>q</search>", "q", [Passage("7", "Paris", "Zeilenende\u2028\n")], "\n<result>…")],
        stop_reason=StopReason.TOKEN_LIMIT,
    )


def test_the_journal_gives_back_what_was_put_in(tmp_path: Path) -> None:
    first, second = sampled("Q0", "3", "", "3"), sampled("Q1", "3")
    EpisodeJournal(tmp_path).add(7, 0, 1, first)
    EpisodeJournal(tmp_path).add(7, 1, 0, second)
    assert EpisodeJournal(tmp_path).recorded(7, {0: "Q0", 1: "Q1"}, of("3")) == {(0, 1): first, (1, 0): second}
    assert EpisodeJournal(tmp_path).recorded(8, {0: "Q0", 1: "Q1"}, of("3")) == {}


def test_only_the_same_question_and_the_same_weights_hold(tmp_path: Path) -> None:
    journal = EpisodeJournal(tmp_path)
    for member, episode in enumerate(
        [sampled("Q0", "3"), sampled("other", "3"), sampled("Q0", "2"), sampled("Q0", "3", "2"), sampled("Q0")]
    ):
        journal.add(7, 0, member, episode)
    journal.add(7, 5, 0, sampled("Q0", "3"))
    assert list(journal.recorded(7, {0: "Q0"}, of("3"))) == [(0, 0)]


def test_an_episode_sampled_anew_takes_the_place_of_one_that_did_not_hold(tmp_path: Path) -> None:
    journal = EpisodeJournal(tmp_path)
    journal.add(7, 0, 0, sampled("Q0", "2"))
    journal.add(7, 0, 0, sampled("Q0", "3"))
    journal.add(7, 0, 0, sampled("Q0", "2"))
    assert journal.recorded(7, {0: "Q0"}, of("3")) == {(0, 0): sampled("Q0", "3")}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_kill_in_the_middle_of_a_line_costs_that_line_alone(tmp_path: Path, data: st.DataObject) -> None:
    journal, path = EpisodeJournal(tmp_path), tmp_path / "step-000007.journal.jsonl"
    path.unlink(missing_ok=True)
    journal.add(7, 0, 0, sampled("Q0", "3"))
    whole = path.stat().st_size
    journal.add(7, 0, 1, sampled("Q0", "3"))
    cut = data.draw(st.integers(whole, path.stat().st_size - 2))
    path.write_bytes(path.read_bytes()[:cut])
    journal = EpisodeJournal(tmp_path)  # of the process that comes after
    assert list(journal.recorded(7, {0: "Q0"}, of("3"))) == [(0, 0)]
    journal.add(7, 0, 2, sampled("Q0", "3"))
    assert list(journal.recorded(7, {0: "Q0"}, of("3"))) == [(0, 0), (0, 2)]


def test_lines_that_are_no_entries_are_passed_over(tmp_path: Path) -> None:
    journal = EpisodeJournal(tmp_path)
    (tmp_path / "step-000007.journal.jsonl").write_bytes(b'\x00\xff\n7\n[]\n{"group": 0, "member": 0}\n')
    journal.add(7, 0, 1, sampled("Q0", "3"))
    assert list(journal.recorded(7, {0: "Q0"}, of("3"))) == [(0, 1)]


PLACES = (0, 2, 3)  # the sample between them could not be taken


def finished_step(directory: Path) -> list[Episode]:
    members = [replace(sampled("Q1", "3"), generate_seconds=float(i)) for i in range(3)]
    score = Score(0.1, 0.0, 0.0, "")
    RunDirectory(directory).write_episodes(
        7,
        [
            Group("7.0", Question("a", "Q0", ("x",)), []),
            Group(
                "7.1",
                Question("b", "Q1", ("x",)),
                [Member(episode, score, p) for p, episode in zip(PLACES, members, strict=True)],
            ),
        ],
        [[], [TrainingUse(0.1, None, "no signal")] * 3],
    )
    return members


def test_a_finished_step_is_read_from_the_record(tmp_path: Path) -> None:
    members = finished_step(tmp_path)
    journal = EpisodeJournal(tmp_path / "episodes")
    assert journal.recorded(7, {0: "Q0", 1: "Q1"}, of("3")) == {
        (1, p): episode for p, episode in zip(PLACES, members, strict=True)
    }
    assert journal.recorded(7, {0: "Q0", 1: "Q1"}, of("4")) == {}


def test_a_damaged_record_is_worth_what_can_be_read(tmp_path: Path) -> None:
    members = finished_step(tmp_path)
    path = tmp_path / "episodes" / "step-000007.jsonl.gz"
    journal, whole = EpisodeJournal(tmp_path / "episodes"), path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        found = journal.recorded(7, {0: "Q0", 1: "Q1"}, of("3"))
        assert list(found.values()) == members[: len(found)]
    path.write_bytes(b"no gzip")
    assert journal.recorded(7, {0: "Q0", 1: "Q1"}, of("3")) == {}


def test_closing_and_forgetting(tmp_path: Path) -> None:
    finished_step(tmp_path)
    journal = EpisodeJournal(tmp_path / "episodes")
    journal.add(8, 0, 0, sampled("Q0", "3"))
    journal.add(9, 0, 0, sampled("Q0", "3"))
    journal.close(8)
    journal.close(8)
    assert not journal.recorded(8, {0: "Q0"}, of("3"))
    assert journal.recorded(9, {0: "Q0"}, of("3"))
    journal.delete_after(7)
    assert [path.name for path in (tmp_path / "episodes").iterdir()] == ["step-000007.jsonl.gz"]
    journal.delete_after(0)
    assert not list((tmp_path / "episodes").iterdir())


def test_a_journal_that_cannot_be_written_is_named_and_nothing_of_it_is_lost(tmp_path: Path) -> None:
    journal = EpisodeJournal(tmp_path)
    journal.add(7, 0, 0, sampled("Q0", "3"))
    path = tmp_path / "step-000007.journal.jsonl"
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, former[1]))
        with pytest.raises(TrainingError, match=r"step-000007\.journal\.jsonl cannot be written"):
            journal.add(7, 0, 1, sampled("Q0", "3"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)
    again = EpisodeJournal(tmp_path)
    assert list(again.recorded(7, {0: "Q0"}, of("3"))) == [(0, 0)]
    again.add(7, 0, 1, sampled("Q0", "3"))
    assert list(again.recorded(7, {0: "Q0"}, of("3"))) == [(0, 0), (0, 1)]


def test_a_journal_keeps_one_file_open_per_step_whatever_it_holds(tmp_path: Path) -> None:
    journal = EpisodeJournal(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for step in (7, 8):
        for member in range(20):
            journal.add(step, 0, member, sampled("Q0", "3"))
    assert len(os.listdir("/proc/self/fd")) == before + 2
    journal.close(8)
    assert len(os.listdir("/proc/self/fd")) == before
