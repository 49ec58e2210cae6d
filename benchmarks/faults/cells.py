"""A cell of the table: one fault, one service, one phase, one injection. What is done is kept and not done again."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.faults.kinds import KILL, KINDS, PHASES, POLICY, Kind


@dataclass(frozen=True)
class Cell:
    """`number` counts the injections of a fault into a phase."""

    kind: Kind
    target: str
    phase: str
    number: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind.name} / {self.target} / {self.phase} / {self.number}"

    def random(self) -> random.Random:
        """Decides the moment within the phase and the variant; the same for the same seed."""
        return random.Random(zlib.crc32(f"{self.seed}/{self.name}".encode()))


@dataclass
class Outcome:
    """What became of the run.

    Attributes:
        cell, seed: which injection it was.
        met: phase and step in which the fault began, and at which request.
        run: in words.
        ended: what the trainer said last, if it ended.
        requests: what the proxy did with requests.
        retried: episodes sampled again, as the run counts them (`infra_errors`).
        lost, twice, left_out: episodes without a record, finished ones that were sampled again, and those that the run
            gave up.
        wrong_files: what is wrong with files after it.
        seconds: from the fault until the step after it was complete.
        broken: promises that did not hold.
        declined: why it was not run.
    """

    cell: str
    kind: str
    target: str
    phase: str
    seed: int
    met: str = ""
    run: str = ""
    ended: str = ""
    requests: dict[str, int] = field(default_factory=dict)
    retried: int = 0
    lost: int = 0
    twice: int = 0
    left_out: int = 0
    wrong_files: list[str] = field(default_factory=list)
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)
    declined: str = ""


def cells(only: Sequence[str], seed: int, times: int) -> Iterator[Cell]:
    """Those whose name has all of the words (of `a,b` one is enough); one injection of everything comes first.

    `times`: at most so many injections of a fault into a phase.
    """
    in_order = sorted(KINDS, key=_slowness)
    for number in range(1, times + 1):
        for kind in in_order:
            for target in kind.targets:
                for phase in PHASES:
                    cell = Cell(kind, target, phase, number, seed)
                    if number <= kind.repeats and all(_has(cell.name, word) for word in only):
                        yield cell


def _has(name: str, word: str) -> bool:
    return any(each.lower() in name.lower() for each in word.split(","))


def _slowness(kind: Kind) -> int:
    """A policy takes longest to come back; a run with other settings, or that waits in vain, takes its time, too."""
    return 2 * ((kind.name, kind.targets) == (KILL, (POLICY,))) + (kind.outage_timeout is not None)


class Ledger:
    """The outcomes so far, one a line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def outcomes(self) -> list[Outcome]:
        """The latest outcome of each cell and seed."""
        latest: dict[tuple[str, int], Outcome] = {}
        if self._path.is_file():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                outcome = Outcome(**json.loads(line))
                latest[outcome.cell, outcome.seed] = outcome
        return list(latest.values())

    def has(self, cell: Cell) -> bool:
        return any((each.cell, each.seed) == (cell.name, cell.seed) for each in self.outcomes())

    def add(self, outcome: Outcome) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(asdict(outcome)) + "\n")
