"""Episodes that are sampled but not yet part of a checkpoint, so that a killed run does not sample them again.

Each is appended to the journal of the step that its group was drawn for as soon as it is finished; when all groups of a
step are in the record (`step-….jsonl.gz`), its journal is deleted. A resumed run looks here first: it trains on what
was sampled once, whether or not the sampler would produce the same again.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
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
        self._open: dict[int, FileIO] = {}  # by step

    def recorded(
        self, step: int, questions: Mapping[int, str], is_valid: Callable[[Episode], bool]
    ) -> dict[Place, Episode]:
        """The episodes of groups drawn for a step that were sampled before and are still valid.

        Args:
            questions: the text that each group asks now, by number.
            is_valid: whether an episode may be one of this run now.
        """
        return {
            place: episode
            for place, episode in self._held(step)
            if episode.question == questions.get(place[0]) and is_valid(episode)
        }

    def held(self, step: int, is_valid: Callable[[Episode], bool]) -> dict[Place, Episode]:
        """The valid episodes of all groups drawn for a step, whatever they ask; the latest of each place."""
        return {place: episode for place, episode in self._held(step) if is_valid(episode)}

    def _held(self, step: int) -> Iterator[tuple[Place, Episode]]:
        yield from ((place, episode) for group, place, episode in self.of_finished_step(step) if group == step)
        yield from self.of_journal(step)

    def of_finished_step(self, step: int) -> Iterator[tuple[int, Place, Episode]]:
        """What the record of a step holds, with the step that each group was drawn for (`7.0`: step 7, group 0)."""
        path = self._finished(step)
        if not path.is_file():
            return
        try:
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                for entry in _entries(lines):
                    if (episode := _episode(entry)) is not None and "member" in entry:
                        drawn_for, _, number = entry["group"].partition(".")
                        yield int(drawn_for), (int(number), entry["member"]), episode
        except (OSError, EOFError, zlib.error, UnicodeDecodeError):
            return  # of a damaged file, what could be read is used

    def of_journal(self, step: int) -> Iterator[tuple[Place, Episode]]:
        """What the journal of a step holds, valid or not."""
        path = self._journal(step)
        if not path.is_file():
            return
        with path.open(encoding="utf-8", errors="replace") as lines:
            for entry in _entries(lines):
                if (episode := _episode(entry)) is not None:
                    yield (entry["group"], entry["member"]), episode

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
        if step in self._open:
            return self._open[step]
        self._directory.mkdir(parents=True, exist_ok=True)
        out = self._journal(step).open("a+b", buffering=0)
        if out.tell():
            out.seek(-1, os.SEEK_END)
            if out.read(1) != b"\n":
                out.write(b"\n")  # a kill left half a line; it gets a line of its own and is never read
        self._open[step] = out
        return out

    def close(self, step: int, but: Collection[int] = ()) -> None:
        """Delete the journals up to a step, `but` those of which groups are still to be recorded."""
        for number, path in self._files("step-*.journal.jsonl"):
            if number <= step and number not in but:
                self._release(number)
                path.unlink(missing_ok=True)

    def delete_after(self, step: int) -> None:
        """Delete the episodes of later steps, finished or not, because they will be sampled again."""
        for number, path in self._files("step-*.json*"):
            if number > step:
                self._release(number)
                path.unlink()

    def _files(self, pattern: str) -> list[tuple[int, Path]]:
        """Files with the steps that they are of; a file of any other name is nobody's."""
        found = [(path.name.removeprefix("step-").partition(".")[0], path) for path in self._directory.glob(pattern)]
        return [(int(step), path) for step, path in found if step.isdecimal()]

    def _release(self, step: int) -> None:
        with self._lock:
            if (journal := self._open.pop(step, None)) is not None:
                journal.close()

    def _journal(self, step: int) -> Path:
        return self._directory / f"step-{step:06d}.journal.jsonl"

    def _finished(self, step: int) -> Path:
        return self._directory / f"step-{step:06d}.jsonl.gz"


def _entries(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """One JSON object per line; a line that a kill cut off is skipped."""
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            yield entry


def _episode(entry: dict[str, Any]) -> Episode | None:
    try:
        return episode_from_dict(entry["episode"])
    except (KeyError, ProtocolError):
        return None
