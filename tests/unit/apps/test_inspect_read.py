"""Reading a run: who was trained on and why, what fits a filter, and files that end too early."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from apps.inspect.filters import Filters
from apps.inspect.read import InspectedEpisode, RunEpisodes, find_run
from research.episode.agent import StopReason
from research.episode.branching import branch_points
from research.errors import AssetError, ConfigurationError
from services.trainer.learner.advantages import shuffle_rewards
from services.trainer.learner.estimators import group_advantages
from services.trainer.run_dir.run_dir import RunDirectory
from tests.support.inspected_run import HELPFUL, PARIS, episode, group, write_run, write_step

STEP_1, STEP_2, EVALUATION = 0, 1, 2


def read(run: RunEpisodes, source: int) -> list[InspectedEpisode]:
    return list(run.read(run.sources()[source]))


def left_out(run: RunEpisodes, source: int) -> list[str | None]:
    return [shown.training.skip_reason for shown in read(run, source) if shown.training is not None]


def test_sources_are_steps_then_evaluations(tmp_path: Path) -> None:
    assert [source.name for source in write_run(tmp_path).sources()] == ["step 1", "step 2", "evaluation after"]


def test_advantages_are_those_of_the_loop(tmp_path: Path) -> None:
    shown = read(write_run(tmp_path), STEP_1)
    rewards = [1.0, 1.0, 0.1, 0.0]
    assert [s.score.reward for s in shown[:4]] == rewards
    assert [s.training.advantage for s in shown[:4] if s.training] == group_advantages(rewards)
    assert [s.training and s.training.advantage for s in shown[4:]] == [None, None]
    assert [(s.group, s.position) for s in shown] == [*(("1.0", i) for i in range(4)), ("1.1", 0), ("1.1", 1)]


SILENT = "group without signal, all its rewards are 0.10"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["grpo.train_per_group=None"], [None, None, None, None, SILENT, SILENT]),
        (
            ["grpo.train_per_group=2"],
            ["not among the 2 kept of 4", None, "not among the 2 kept of 4", None, SILENT, SILENT],
        ),
        (
            ["grpo.mask_truncated=true", "grpo.train_per_group=None"],
            [None, None, None, "truncated episodes are masked", SILENT, SILENT],
        ),
    ],
)
def test_it_tells_who_was_trained_on(tmp_path: Path, overrides: list[str], expected: list[str | None]) -> None:
    assert left_out(write_run(tmp_path, *overrides), STEP_1) == expected


def test_a_step_without_update_trained_on_nobody(tmp_path: Path) -> None:
    assert left_out(write_run(tmp_path), STEP_2) == ["the step made no update"] * 2


def test_the_control_run_is_told_with_the_rewards_that_it_was_dealt(tmp_path: Path) -> None:
    run = write_run(tmp_path, "ablation.kind=shuffled_rewards")
    dealt = shuffle_rewards([[1.0, 1.0, 0.1, 0.0], [0.1, 0.1]], random.Random("7/1"))
    shown = read(run, STEP_1)
    assert [list(s.rewards) for s in (shown[0], shown[4])] == dealt
    other = next(s for s in shown if s.training and s.training.reward != s.score.reward)
    assert "ablation: it was given the reward" in (other.training_in_words or "")


def test_a_branch_says_what_it_copied(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    root, grown = episode("Paris", HELPFUL), episode("Lyon", HELPFUL)
    grown.branched_from = branch_points(root, 0)[0]
    write_step(run, 1, [group("1.0", PARIS, root, grown)])
    told = [shown.branch_in_words for shown in read(RunEpisodes(tmp_path), STEP_1)]
    assert told == [None, f"branch of sample 1 after search 1, {grown.branched_from.tokens} tokens copied"]


def test_evaluations_have_no_training(tmp_path: Path) -> None:
    assert [(s.training, s.group, s.training_in_words) for s in read(write_run(tmp_path), EVALUATION)] == [
        (None, None, None)
    ]


def test_outcomes_follow_format_first(tmp_path: Path) -> None:
    shown = read(write_run(tmp_path), STEP_1)
    assert [s.outcome for s in shown] == ["exact", "exact", "wrong", "format", "wrong", "wrong"]
    assert shown[3].reward_in_words == "bad format: the episode did not end by itself"
    assert [s.corrected for s in shown] == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(), ["2.0/0", "2.0/1", *(f"1.0/{i}" for i in range(4)), "1.1/0", "1.1/1", "None/0"]),
        (Filters(steps=(2,)), ["2.0/0", "2.0/1"]),
        (Filters(steps=(2,), evaluations=("after",)), ["2.0/0", "2.0/1", "None/0"]),
        (Filters(group="1.1"), ["1.1/0", "1.1/1"]),
        (Filters(stop=StopReason.TOKEN_LIMIT), ["1.0/3"]),
        (Filters(kind="two_hop", steps=(1,)), ["1.1/0", "1.1/1"]),
        (Filters(corrected=True), ["1.0/1"]),
        (Filters(min_reward=0.1, max_reward=0.1, steps=(1,)), ["1.0/2", "1.1/0", "1.1/1"]),
        (Filters(text="ROMA", max_reward=0.5, steps=(2,)), ["2.0/1"]),
        (Filters(text="term of economics"), ["1.0/1", "1.0/2", "1.0/3"]),
        (Filters(text="no such words"), []),
        (Filters(questions=("q/rome", "of FRANCE"), max_reward=0.5), ["1.1/0", "1.1/1", "2.0/1", "1.0/2", "1.0/3"]),
    ],
    ids=str,
)
def test_filters(tmp_path: Path, filters: Filters, expected: list[str]) -> None:
    assert [f"{shown.group}/{shown.position}" for shown in filters.select(write_run(tmp_path))] == expected


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (Filters(steps=(9,)), "step 9; it has 1 to 2"),
        (Filters(evaluations=("x",)), "'x'; it has after"),
        (Filters(questions=("Spain",)), "asks 'Spain'"),
    ],
    ids=str,
)
def test_a_source_that_does_not_exist_is_named_with_those_that_do(
    tmp_path: Path, filters: Filters, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        list(filters.select(write_run(tmp_path)))


def test_a_file_that_ends_early_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    path = run.sources()[STEP_1].path
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    # Two members: the second is cut off, as a disk that ran full would leave it.
    path.write_bytes(gzip.compress(b"".join(lines[:5])) + gzip.compress(lines[5])[:-40])
    assert [(s.group, s.position) for s in read(run, STEP_1)] == [*(("1.0", i) for i in range(4)), ("1.1", 0)]
    assert run.problems[0].startswith("step-000001.jsonl.gz cannot be read beyond line 5")
    assert left_out(RunEpisodes(tmp_path), STEP_1)[-1] == SILENT
    assert read(run, STEP_1)[-1].rewards == (0.1,)  # the file has no more of the group


def test_a_line_that_is_no_episode_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    path = run.sources()[EVALUATION].path
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b'{"question": {}}\n'))
    with pytest.raises(AssetError, match=r"after\.jsonl\.gz:2: not an episode"):
        read(run, EVALUATION)


def test_a_run_is_found_by_name_and_by_path(tmp_path: Path) -> None:
    write_run(tmp_path / "first")
    assert find_run("first", tmp_path).directory == tmp_path / "first"
    assert find_run(str(tmp_path / "first"), tmp_path / "elsewhere").directory == tmp_path / "first"


def test_a_run_that_does_not_exist_is_answered_with_those_that_do(tmp_path: Path) -> None:
    write_run(tmp_path / "first")
    (tmp_path / "logs").mkdir()
    with pytest.raises(AssetError, match=r"no run 'frist' .* those with episodes are: first$"):
        find_run("frist", tmp_path)
    with pytest.raises(AssetError, match=r"logs has no episodes, .* are: first$"):
        find_run("logs", tmp_path)
    write_run(tmp_path / "study" / "seed-1")
    with pytest.raises(AssetError, match=r"study has no episodes, .* are: study/seed-1$"):
        find_run("study", tmp_path)
    assert find_run("study/seed-1", tmp_path).sources()
    with pytest.raises(AssetError, match="no run there has episodes yet"):
        find_run("any", tmp_path / "nowhere")
