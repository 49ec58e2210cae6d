"""A run that is killed again and again ends exactly as one that never stopped: every bit, every episode."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from services.trainer.rollout.self_check import QUESTIONS
from services.trainer.run_dir.references import link_checkpoint
from services.trainer.run_dir.run_dir import RunDirectory
from tests.support.tiny_model import write_tiny_model
from tests.support.tiny_run import STEPS, train

KILLS = 16
NAMES_OF_STEP_2 = ["step-000002", "step-000002-01"]
TENSORS = ["model.safetensors", "optimizer.safetensors", "optimizer.json", "reference.json"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@contextmanager
def child(model: Path, work: Path, **kwargs: Any) -> Iterator[tuple[BaseProcess, Connection]]:
    """A process that trains in `work`; the fork server imports torch once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.tiny_run", "tests.support.checkpoint_child"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=train, args=(model, work, sender), kwargs=kwargs)
    process.start()
    sender.close()
    yield process, receiver
    process.join()


def train_unbroken(model: Path, work: Path, **kwargs: Any) -> int | None:
    """Train to the end; returns the exit status."""
    with child(model, work, **kwargs) as (process, told):
        while heard(told):
            pass
    return process.exitcode


def train_and_kill(model: Path, work: Path, after_kill: Callable[[], None] = lambda: None, **kwargs: Any) -> list[int]:
    """Kill the run after random numbers of generations, `KILLS` times, then let it end.

    Returns:
        The number of checkpoints that were there at each kill.
    """
    rng, stood_at = random.Random(7), []
    for _ in range(KILLS):
        with child(model, work, **kwargs) as (process, told):
            for _ in range(QUESTIONS + rng.randint(6, 24)):  # every start begins with the check of the sampler
                if not heard(told):
                    break
            time.sleep(rng.uniform(0.0, 0.05))  # so that not every kill meets the beginning of a generation
            process.kill()
        stood_at.append(len(list(work.glob("runs/demo/checkpoints/step-??????"))))
        after_kill()
    assert train_unbroken(model, work, **kwargs) == 0
    return stood_at


def train_and_kill_in_each_version(model: Path, work: Path, after_kill: Callable[[], None], **kwargs: Any) -> int:
    """Kill the run after a random number of generations by each new version, until it ends; returns the kills."""
    rng, newest, kills = random.Random(7), 0, 0
    while True:
        with child(model, work, **kwargs) as (process, told):
            version = heard(told)
            while version and int(version) <= newest:
                version = heard(told)
            if not version:
                process.join()
                assert process.exitcode == 0
                return kills
            newest = int(version)
            for _ in range(rng.randint(0, 12)):
                if not (version := heard(told)):
                    break
                newest = max(newest, int(version))
            process.kill()
        kills += 1
        after_kill()


def test_a_run_ends_in_order_when_its_minutes_are_up(tiny: Path, tmp_path: Path) -> None:
    assert train_unbroken(tiny, tmp_path, overrides=["grpo.minutes=0.0001"]) == 0
    run = tmp_path / "runs" / "demo"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["minutes"] == 0.0001
    assert summary["steps"] == 1 < STEPS
    assert {"before", "after"} <= summary["eval"].keys()
    assert RunDirectory(run).is_finished(STEPS, 0.0001)
    assert not RunDirectory(run).is_finished(STEPS)
    # More time is more steps, from where it ended.
    assert train_unbroken(tiny, tmp_path) == 0
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def heard(told: Connection) -> str:
    """Wait for the next generation; returns the version that samples, or nothing if the process has ended."""
    try:
        version: str = told.recv()
    except EOFError:
        return ""
    return version


def episodes(work: Path, step: int) -> list[dict[str, Any]]:
    path = work / "runs" / "demo" / "episodes" / f"step-{step:06d}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if not k.endswith("seconds")}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


def metrics(work: Path) -> list[dict[str, Any]]:
    lines = (work / "runs" / "demo" / "metrics.jsonl").read_text().splitlines()
    found: list[dict[str, Any]] = without_seconds([json.loads(line) for line in lines])
    return found


def reference(work: Path) -> bytes:
    """What a run keeps of its reference; it was written once, whatever happened."""
    [path] = (work / "runs" / "demo" / "checkpoints").glob("reference-*")
    return (path / "reference.safetensors").read_bytes()


def assert_same_end(one: Path, other: Path) -> None:
    checkpoints = [work / "runs" / "demo" / "checkpoints" / f"step-{STEPS:06d}" for work in (one, other)]
    for name in TENSORS:
        assert (checkpoints[0] / name).read_bytes() == (checkpoints[1] / name).read_bytes(), name
    assert reference(one) == reference(other)
    # Python's own generator starts from the system's entropy; only retries of requests draw from it.
    assert len({json.loads((path / "random.json").read_text())["torch"] for path in checkpoints}) == 1
    states = [without_seconds(json.loads((path / "state.json").read_text())) for path in checkpoints]
    assert states[0] == states[1]
    assert metrics(one) == metrics(other)
    for step in range(1, STEPS + 1):
        assert without_seconds(episodes(one, step)) == without_seconds(episodes(other, step)), f"step {step}"
    published = [sorted((work / "runs" / "demo" / "weights").glob("*/model.safetensors")) for work in (one, other)]
    assert [path.parent.name for path in published[0]] == [path.parent.name for path in published[1]]
    for mine, its in zip(*published, strict=True):
        assert mine.read_bytes() == its.read_bytes()


def assert_something_was_learnt(work: Path) -> None:
    entries = metrics(work)
    assert [entry["step"] for entry in entries] == list(range(1, STEPS + 1))
    assert sum(entry["update"] is not None for entry in entries) >= STEPS // 2
    assert any(entry["searches"] > 0 for entry in entries)
    assert len({entry["reward"] for entry in entries}) > 1


REFILLED = ["grpo.refill_rounds=3", "questions.settled_share=0.5", "questions.curriculum_candidates=2"]

BRANCHED = ["grpo.branches=2", "grpo.refill_rounds=1"]


@pytest.mark.parametrize("overrides", [[], REFILLED, BRANCHED], ids=["plain", "refilled", "branched"])
def test_a_killed_run_ends_as_an_unbroken_one(tiny: Path, tmp_path: Path, overrides: list[str]) -> None:
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    assert train_unbroken(tiny, unbroken, overrides=overrides) == 0
    stood_at = train_and_kill(tiny, killed, overrides=overrides)
    assert len(set(stood_at)) > 2, f"the kills did not spread over the run: {stood_at}"
    assert_something_was_learnt(unbroken)
    assert_same_end(unbroken, killed)
    assert not list(killed.glob("runs/demo/episodes/*.journal.jsonl"))
    rounds = [entry["rollout"]["refill_rounds"] for entry in metrics(killed)]
    assert any(rounds) if overrides else not any(rounds)
    branches = [entry["rollout"]["branches"] for entry in metrics(killed)]
    assert any(branches) == (overrides is BRANCHED)


def test_what_was_sampled_once_is_what_is_trained_on(tiny: Path, tmp_path: Path) -> None:
    """The sampler never says the same twice; yet no finished episode is lost, and the end follows from them alone."""
    killed, replayed = tmp_path / "killed", tmp_path / "replayed"
    sampled: dict[tuple[int, int, int], dict[str, Any]] = {}

    def remember() -> None:
        for path in killed.glob("runs/demo/episodes/*.journal.jsonl"):
            step = int(path.name[5:11])
            for line in path.read_bytes().splitlines():
                if line.endswith(b"}}"):  # the last may be cut off by the kill
                    entry = json.loads(line)
                    sampled[step, entry["group"], entry["member"]] = entry["episode"]

    train_and_kill(tiny, killed, remember, seeded=False)
    assert_something_was_learnt(killed)
    assert len({step for step, _, _ in sampled}) > 2, "the kills met too few unfinished steps"
    for (step, group, member), episode in sampled.items():
        members = [entry["episode"] for entry in episodes(killed, step) if entry["group"] == f"{step}.{group}"]
        assert members[member] == episode

    run = replayed / "runs" / "demo"
    shutil.copytree(killed / "runs" / "demo" / "episodes", run / "episodes")
    link_checkpoint(killed / "runs" / "demo" / "checkpoints" / "step-000000", run / "checkpoints")
    unchecked = ["alarms.start_mismatch_ceiling=None"]  # the check of the sampler samples
    assert train_unbroken(tiny, replayed, seeded=False, may_sample=False, overrides=unchecked) == 0
    assert_same_end(killed, replayed)


OVERLAPPED = ["trainer.max_staleness=2", "grpo.refill_rounds=1"]


@pytest.mark.parametrize(("branches", "interval"), [(0, 2), (2, 2), (0, STEPS)])
def test_with_overlap_a_killed_run_loses_no_episode_and_no_question(
    tiny: Path, tmp_path: Path, branches: int, interval: int
) -> None:
    """What a step takes depends on what is finished first; yet it takes the same again, and in the same order.

    With few checkpoints a kill sets the run back by more versions than an episode may be old.
    """
    killed, replayed = tmp_path / "killed", tmp_path / "replayed"
    overlapped = [*OVERLAPPED, f"grpo.branches={branches}", f"checkpoints.interval={interval}"]
    sampled: dict[tuple[str, int], dict[str, Any]] = {}
    set_back_by = []

    def remember() -> None:
        set_back_by.append(versions_past_checkpoint(killed))
        for path in killed.glob("runs/demo/episodes/*.journal.jsonl"):
            step = int(path.name[5:11])
            for line in path.read_bytes().splitlines():
                if line.endswith(b"}}"):  # the last may be cut off by the kill
                    entry = json.loads(line)
                    place = f"{step}.{entry['group']}", entry["member"]
                    # A second of the same place is one too many, unless it is a branch whose root is another now.
                    if branches or place not in sampled:
                        sampled[place] = entry["episode"]

    assert train_and_kill_in_each_version(tiny, killed, remember, seeded=False, slow=True, overrides=overlapped) > 3
    assert (max(set_back_by) > 2) == (interval == STEPS), set_back_by
    assert_something_was_learnt(killed)
    entries = [entry["rollout"] for entry in metrics(killed)]
    assert max(entry["staleness_max"] for entry in entries) in (1, 2)
    assert any(entry["branches"] for entry in entries) == (branches > 0)
    assert any(entry["several_versions"] for entry in entries), "no episode was under way while weights changed"

    trained: dict[tuple[str, int], Any] = {}
    for step in range(1, STEPS + 1):
        trained |= {(entry["group"], entry["member"]): entry["episode"] for entry in episodes(killed, step)}
    dropped = dropped_groups(killed)
    kept = {place: episode for place, episode in sampled.items() if place in trained}
    assert len({group.partition(".")[0] for group, _ in kept}) > 2, "the kills met too few unfinished steps"
    assert all(trained[place] == episode for place, episode in kept.items())
    # What is not trained on was dropped, or drawn for steps that the end of the run has cut off.
    left = {group for group, _ in sampled if group not in {group for group, _ in trained}} - dropped
    assert len(left) <= 2 * 3

    run = replayed / "runs" / "demo"
    shutil.copytree(killed / "runs" / "demo" / "episodes", run / "episodes")
    link_checkpoint(killed / "runs" / "demo" / "checkpoints" / "step-000000", run / "checkpoints")
    unchecked = ["alarms.start_mismatch_ceiling=None"]  # the check of the sampler samples
    assert train_unbroken(tiny, replayed, seeded=False, may_sample=False, overrides=[*overlapped, *unchecked]) == 0
    assert_same_end(killed, replayed)


def versions_past_checkpoint(work: Path) -> int:
    """By how many published versions a run that starts now is set back; 0 before the first checkpoint."""
    run = work / "runs" / "demo"
    checkpoints = sorted(run.glob("checkpoints/step-??????/state.json"))
    published = [int(path.name.split("-")[1]) for path in run.glob("weights/version-??????")]
    return max(published) - int(json.loads(checkpoints[-1].read_text())["version"]) if checkpoints else 0


def dropped_groups(work: Path) -> set[str]:
    files = (work / "runs" / "demo" / "episodes").glob("*.groups.json")
    return {each["group"] for path in files for each in json.loads(path.read_text()) if each["members"] is None}


def test_overlap_can_be_switched_on_and_off_between_starts(tiny: Path, tmp_path: Path) -> None:
    for minutes, staleness in ((0.0001, 1), (0.0002, 0), (None, 1)):
        overrides = [f"trainer.max_staleness={staleness}", f"grpo.minutes={minutes}"]
        assert train_unbroken(tiny, tmp_path, overrides=overrides) == 0
    assert [entry["step"] for entry in metrics(tmp_path)] == list(range(1, STEPS + 1))


def test_a_roll_back_goes_another_way_and_outlives_the_process(tiny: Path, tmp_path: Path) -> None:
    alarm = ["alarms.well_formed_floor=1.0", "alarms.on_malformed=rollback", "alarms.max_rollbacks=1"]
    assert train_unbroken(tiny, tmp_path, overrides=alarm) == 1  # the second alarm, after step 3, stops the run
    checkpoints = tmp_path / "runs" / "demo" / "checkpoints"
    names = ["reference-01", "step-000000", "step-000002", "step-000002-01"]
    assert sorted(path.name for path in checkpoints.iterdir()) == names
    first, again = (json.loads((checkpoints / name / "state.json").read_text()) for name in NAMES_OF_STEP_2)
    assert again["question_cursors"][""] == first["question_cursors"][""] + 3  # those of the step that was undone
    assert again["version"] > first["version"]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (checkpoints / "step-000002" / name).read_bytes() == (checkpoints / "step-000002-01" / name).read_bytes()
    assert [entry["step"] for entry in metrics(tmp_path)] == [1, 2, 3]

    assert train_unbroken(tiny, tmp_path, overrides=["alarms.on_malformed=warn"]) == 0
    assert [entry["step"] for entry in metrics(tmp_path)] == list(range(1, STEPS + 1))


def test_a_roll_back_with_overlap_leaves_what_was_under_way(tiny: Path, tmp_path: Path) -> None:
    alarm = ["alarms.well_formed_floor=1.0", "alarms.on_malformed=rollback", "alarms.max_rollbacks=1", *OVERLAPPED]
    assert train_unbroken(tiny, tmp_path, overrides=alarm, slow=True) == 1  # the second alarm stops the run
    checkpoints = tmp_path / "runs" / "demo" / "checkpoints"
    first, again = (json.loads((checkpoints / name / "state.json").read_text()) for name in NAMES_OF_STEP_2)
    assert first["drawn"]
    assert not again["drawn"]
    assert again["question_cursors"][""] > first["question_cursors"][""]

    assert train_unbroken(tiny, tmp_path, overrides=["alarms.on_malformed=warn", *OVERLAPPED]) == 0
    assert [entry["step"] for entry in metrics(tmp_path)] == list(range(1, STEPS + 1))
