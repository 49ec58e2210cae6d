"""Episodes that are sampled but not yet part of a checkpoint, so that a killed run does not sample them again.

Each is appended to the journal of its step as soon as it is finished; when the step is over, the record holds all of
them (`step-….jsonl.gz`) and the journal is deleted. A resumed run looks here first: it trains on what was sampled once,
whether or not the sampler would produce the same again.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import orjson

from research.episode.agent import Episode
from research.episode.serialization import episode_from_dict
from research.errors import ProtocolError, TrainingError

Place = tuple[int, int]  # number of the group within its step, and of the member within its group


class EpisodeJournal:
    """Works in the directory where the record keeps the episodes of finished steps; any thread may use it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._open: tuple[int, FileIO] | None = None  # the step whose journal is written, and its file

    def recorded(self, step: int, questions: Sequence[str], version: str, *, first: int = 0) -> dict[Place, Episode]:
        """The episodes of a step that were sampled before and are still valid.

        Args:
            questions: the text that each group asks now.
            version: the weights that would sample now; an episode with tokens of other weights is invalid.
            first: the number of the first of these groups.
        """
        entries = [*_of_finished_step(self._finished(step)), *_of_journal(self._journal(step))]
        return {
            place: episode
            for place, episode in entries
            if first <= place[0] < first + len(questions)
            and episode.question == questions[place[0] - first]
            and episode.weight_versions == [version]
        }

    def add(self, step: int, group: int, member: int, episode: Episode) -> None:
        """Append one finished episode; it is safe from a kill when this returns.

        Raises TrainingError if it cannot be written: what was sampled would be lost, and so would the next.
        """
        line = orjson.dumps({"group": group, "member": member, "episode": episode}, option=orjson.OPT_APPEND_NEWLINE)
        try:
            # No fsync: a kill loses nothing that the kernel has; after a power cut the episode may be sampled again.
            with self._lock:
                if self._appending(step).write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise TrainingError(
                f"the journal {self._journal(step)} cannot be written ({error.strerror}); make room for it, then "
                "start the run again: it continues with every episode sampled so far"
            ) from error

    def _appending(self, step: int) -> FileIO:
        """The journal of a step, opened once: as many episodes may finish as there are connections open."""
        if self._open is not None and self._open[0] == step:
            return self._open[1]
        self._release()
        self._directory.mkdir(parents=True, exist_ok=True)
        out = self._journal(step).open("a+b", buffering=0)
        if out.tell():
            out.seek(-1, os.SEEK_END)
            if out.read(1) != b"\n":
                out.write(b"\n")  # a kill left half a line; it gets a line of its own and is never read
        self._open = step, out
        return out

    def _release(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def close(self, step: int) -> None:
        """Delete the journal of a step whose episodes are in the record; a later one may be open by now."""
        with self._lock:
            if self._open is not None and self._open[0] == step:
                self._release()
        self._journal(step).unlink(missing_ok=True)

    def delete_after(self, step: int) -> None:
        """Delete the episodes of later steps, finished or not, because they will be sampled again."""
        with self._lock:
            self._release()
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
