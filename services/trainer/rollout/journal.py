"""Episodes that are sampled but not yet part of a checkpoint, so that a killed run does not sample them again.

Each is appended to the journal of its step as soon as it is finished; when the step is over, the record holds all of
them (`step-….jsonl.gz`) and the journal is deleted. A resumed run looks here first: it trains on what was sampled once,
whether or not the sampler would produce the same again.
"""

from __future__ import annotations

import gzip
import json
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from research.episode.agent import Episode
from research.episode.serialization import episode_from_dict
from research.errors import ProtocolError

Place = tuple[int, int]  # number of the group within its step, and of the member within its group


class EpisodeJournal:
    """Works in the directory where the record keeps the episodes of finished steps; any thread may use it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._appends = threading.Lock()

    def recorded(self, step: int, questions: Sequence[str], version: str) -> dict[Place, Episode]:
        """The episodes of a step that were sampled before and are still valid.

        Args:
            questions: the text that each group asks now.
            version: the weights that would sample now; an episode with tokens of other weights is invalid.
        """
        entries = [*_of_finished_step(self._finished(step)), *_of_journal(self._journal(step))]
        return {
            place: episode
            for place, episode in entries
            if place[0] < len(questions)
            and episode.question == questions[place[0]]
            and episode.weight_versions == [version]
        }

    def add(self, step: int, group: int, member: int, episode: Episode) -> None:
        """Append one finished episode; it is safe from a kill when this returns."""
        self._directory.mkdir(parents=True, exist_ok=True)
        line = orjson.dumps({"group": group, "member": member, "episode": episode}, option=orjson.OPT_APPEND_NEWLINE)
        # No fsync: a kill loses nothing that the kernel has; after a power cut the episode may be sampled again.
        with self._appends, self._journal(step).open("a+b") as out:
            if out.tell():
                out.seek(-1, os.SEEK_END)
                if out.read(1) != b"\n":
                    out.write(b"\n")  # a kill left half a line; it gets a line of its own and is never read
            out.write(line)

    def close(self, step: int) -> None:
        """Delete the journal of a step whose episodes are in the record."""
        self._journal(step).unlink(missing_ok=True)

    def delete_after(self, step: int) -> None:
        """Delete the episodes of later steps, finished or not, because they will be sampled again."""
        for path in self._directory.glob("step-*.jsonl*"):
            if int(path.name.removeprefix("step-").partition(".")[0]) > step:
                path.unlink()

    def _journal(self, step: int) -> Path:
        return self._directory / f"step-{step:06d}.journal.jsonl"

    def _finished(self, step: int) -> Path:
        return self._directory / f"step-{step:06d}.jsonl.gz"


def _of_journal(path: Path) -> Iterator[tuple[Place, Episode]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for entry in _entries(lines):
            if (episode := _episode(entry)) is not None:
                yield (entry["group"], entry["member"]), episode


def _of_finished_step(path: Path) -> Iterator[tuple[Place, Episode]]:
    """The record numbers groups in their id (`7.0`: step 7, group 0)."""
    if not path.is_file():
        return
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for entry in _entries(lines):
                if (episode := _episode(entry)) is not None and "member" in entry:
                    group = int(entry["group"].partition(".")[2])
                    yield (group, entry["member"]), episode
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return  # of a damaged file, what could be read is used


def _entries(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """One JSON object per line; a line that a kill cut off is skipped."""
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def _episode(entry: dict[str, Any]) -> Episode | None:
    try:
        return episode_from_dict(entry["episode"])
    except (KeyError, ProtocolError):
        return None
