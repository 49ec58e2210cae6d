"""The steps of a run's directory as lengths and times."""

from __future__ import annotations

from itertools import groupby, pairwise
from pathlib import Path

import orjson

from apps.inspect.read import InspectedEpisode, RunEpisodes
from benchmarks.simulation.recorded import RecordedStep
from benchmarks.simulation.workload import EpisodeShape, GroupShape, TurnShape
from research.episode.agent import Episode
from research.errors import AssetError
from services.trainer.model.batching import common_prefix


def run_steps(directory: Path) -> list[RecordedStep]:
    """The finished steps of a run that sampled.

    Raises AssetError if there are none, or if a file of episodes holds something else.
    """
    run = RunEpisodes(directory)
    episodes = {source.step: source for source in run.sources() if source.step is not None}
    metrics = directory / "metrics.jsonl"
    entries = [orjson.loads(line) for line in metrics.read_bytes().splitlines()] if metrics.is_file() else []
    steps = []
    for entry in entries:
        if entry["step"] in episodes and "rollout" in entry["seconds"]:
            members = groupby(run.read(episodes[entry["step"]]), key=lambda inspected: inspected.group)
            groups = tuple(_group(list(own)) for _, own in members)
            seconds = entry["seconds"]
            steps.append(RecordedStep(groups, seconds["rollout"], seconds["update"], seconds["publish"]))
    if not steps:
        raise AssetError(
            f"{directory} has no steps with episodes and metrics.jsonl, which a run writes after each step"
        )
    return steps


def _group(members: list[InspectedEpisode]) -> GroupShape:
    trained = [member.episode for member in members if member.training and member.training.skip_reason is None]
    # The learner computes once what several begin with.
    rows = sorted([*episode.prompt_ids, *episode.token_ids] for episode in trained)
    shared = sum(common_prefix(left, right) for left, right in pairwise(rows))
    return GroupShape(tuple(_episode(member.episode) for member in members), sum(map(len, rows)) - shared)


def _episode(episode: Episode) -> EpisodeShape:
    """What was sampled and searched for it; what a branch copied is prompt."""
    point = episode.branched_from
    copied, before = (point.tokens, point.turn + 1) if point is not None else (0, 0)
    lengths = [(sampled, len(list(run))) for sampled, run in groupby(episode.sampled[copied:])]
    searches = episode.searches - before
    search = round(episode.search_seconds / searches, 4) if searches else 0.0
    turns: list[TurnShape] = []
    for place, (sampled, length) in enumerate(lengths):
        if sampled:
            result = lengths[place + 1][1] if place + 1 < len(lengths) else 0
            searched = result > 0 or episode.turns[before + len(turns)].query is not None
            turns.append(TurnShape(length, search if searched else None, result))
    return EpisodeShape(len(episode.prompt_ids) + copied, tuple(turns))
