"""What a run has on its disk: steps, episodes, and whether every file is whole."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.weights.checksummed_dir import MANIFEST, PARTIAL, corruption_in

Place = tuple[str, int]  # id of a group (`7.0`: step 7, group 0) and number of the member
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """A run's directory, read while the run goes on or after it."""

    directory: Path

    def steps(self) -> dict[int, dict[str, Any]]:
        """The metrics of each finished step; later lines win."""
        return {entry["step"]: entry for entry in self._metrics()}

    def last_step(self) -> int:
        return max(self.steps(), default=0)

    def _metrics(self) -> Iterator[dict[str, Any]]:
        with suppress(FileNotFoundError):
            *lines, _ = (self.directory / "metrics.jsonl").read_bytes().split(b"\n")
            for line in lines:
                with suppress(ValueError):
                    yield json.loads(line)

    def last_checkpoint(self) -> int:
        names = [path.name for path in self.directory.glob("checkpoints/step-??????*") if PARTIAL not in path.name]
        return max((int(name.split("-")[1]) for name in names), default=-1)

    def episodes(self, step: int) -> dict[Place, Tokens]:
        """The episodes of a finished step; empty while they are not recorded."""
        found: dict[Place, Tokens] = {}
        with suppress(FileNotFoundError), gzip.open(self._file(step, "jsonl.gz"), "rt", encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                found[entry["group"], entry["member"]] = tuple(entry["episode"]["token_ids"])
        return found

    def journalled(self) -> dict[Place, Tokens]:
        """The finished episodes that are in a journal only; the latest of each place."""
        found: dict[Place, Tokens] = {}
        for path in self.directory.glob("episodes/*.journal.jsonl"):
            with suppress(FileNotFoundError):
                for line in path.read_bytes().splitlines():
                    with suppress(ValueError, KeyError, TypeError):
                        entry = json.loads(line)
                        place = (f"{int(path.name[5:11])}.{entry['group']}", entry["member"])
                        found[place] = tuple(entry["episode"]["token_ids"])
        return found

    def evaluation(self, step: int) -> dict[str, Any] | None:
        with suppress(FileNotFoundError):
            figures: dict[str, Any] = json.loads(
                (self.directory / "evaluations" / f"step-{step:06d}.json").read_text(encoding="utf-8")
            )
            return figures
        return None

    def damage(self, steps: range) -> list[str]:
        """What is wrong with files of the run; the record of these steps must be whole."""
        wrong = []
        for manifest in sorted(self.directory.glob(f"*/*/{MANIFEST}")):
            sealed = manifest.parent
            if PARTIAL in sealed.name or sealed.name.startswith("damaged-"):
                continue
            fault = corruption_in(sealed)
            if fault is not None and sealed.is_dir():  # the run may have deleted it meanwhile
                wrong.append(f"{sealed.name}: {fault}")
        wrong += [f"metrics: step {step} is missing" for step in steps if step not in self.steps()]
        for step in steps:
            try:
                if not self.episodes(step):
                    wrong.append(f"episodes of step {step} are missing")
            except (OSError, EOFError, ValueError) as error:
                wrong.append(f"episodes of step {step}: {error}")
        return wrong

    def _file(self, step: int, suffix: str) -> Path:
        return self.directory / "episodes" / f"step-{step:06d}.{suffix}"
