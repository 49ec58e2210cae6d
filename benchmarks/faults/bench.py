"""Runs cells: brings a run to the moment, injects, follows it until the step after, and judges."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults import kinds
from benchmarks.faults.cells import Cell, Outcome
from benchmarks.faults.inject import Injection
from benchmarks.faults.judge import judge
from benchmarks.faults.moments import meet
from benchmarks.faults.record import Place, Tokens
from benchmarks.faults.system.programs import answers
from benchmarks.faults.system.services import Services

_FOLLOW_SECONDS = 420.0
_STEPS = 1_000_000
_MOST_STARTS = 4


@dataclass
class Bench:
    """One run after another: each goes on from cell to cell as long as it can.

    `no_small_disk` says why the disk cannot be filled; `libfaketime` is the library's path, if it is there.
    """

    services: Services
    no_small_disk: str
    libfaketime: Path | None
    _runs: int = 0
    _run: str = ""
    _trainer_of: tuple[str, ...] = ()
    _remembered: dict[Place, Tokens] = field(default_factory=dict)

    def run(self, cell: Cell) -> Outcome:
        """One injection; whatever goes wrong in it is part of the outcome."""
        outcome = Outcome(cell.name, cell.kind.name, cell.target, cell.phase, cell.seed)
        if cell.kind.name == kinds.FULL_DISK and self.no_small_disk:
            outcome.declined = f"no small disk can be mounted here: {self.no_small_disk}"
        elif cell.kind.name == kinds.CLOCK and self.libfaketime is None:
            outcome.declined = "libfaketime is not here (Debian: libfaketime; --libfaketime PATH)"
        if outcome.declined:
            return outcome
        injection: Injection | None = None
        try:
            self._ready(cell)
            injection = Injection(self.services, cell, self._run)
            self._inject(cell, injection, outcome)
        except (RuntimeError, OSError) as error:
            outcome.broken.append(f"the bench could not follow: {error}"[:600])
            self._give_up_run()
        finally:
            if injection is not None:
                injection.undo()
        return outcome

    def _inject(self, cell: Cell, injection: Injection, outcome: Outcome) -> None:
        services, record = self.services, self.services.record(self._run)
        log_before = services.trainer.log.stat().st_size
        counts_before = {name: dict(proxy.counts) for name, proxy in services.proxies.items()}
        met = meet(services, cell.phase, cell.target, cell.random(), injection.begin)
        outcome.met, begun = str(met), time.monotonic()
        self._remembered = record.journalled()
        injection.end()
        self._remembered = record.journalled() | self._remembered
        starts = self._follow(met.step + 1, cell, outcome)
        outcome.seconds = round(time.monotonic() - begun, 1)
        log = services.trainer.log.read_bytes()[log_before:].decode("utf-8", errors="replace")
        outcome.requests = _more(counts_before, services)
        if kinds.is_told_by_requests(cell.kind.name) and not outcome.requests:
            outcome.declined = "met no request"
            return
        judge(outcome, cell, injection, record, met.step, starts, log, self._remembered)

    def _ready(self, cell: Cell) -> None:
        """See that services are there, and a trainer with what the cell needs that is in a step."""
        services = self.services
        for program in (services.retriever, services.policy):
            if not program.runs:
                program.start()
                program.await_ready()
        overrides: tuple[str, ...] = ()
        if cell.kind.outage_timeout is not None:
            overrides = (f"trainer.outage_timeout={cell.kind.outage_timeout:g}",)
        if cell.kind.name == kinds.CLOCK:
            overrides = ("clock",)
        if not services.trainer.runs or self._trainer_of != overrides:
            services.trainer.stop()
            if not self._run:
                self._runs += 1
                self._run = f"bench-{os.getpid()}-{self._runs}"
            self._start(overrides)
        record, first = services.record(self._run), services.record(self._run).last_step()
        services.trainer.await_that("into a step", lambda: record.last_step() > first, 300)

    def _start(self, overrides: tuple[str, ...]) -> None:
        services, preload = self.services, ""
        if "clock" in overrides:
            services.clock.write_text("+0\n", encoding="utf-8")
            preload = str(self.libfaketime)
        own = [each for each in overrides if each != "clock"]
        services.trainer_of(self._run, f"grpo.steps={_STEPS}", *own, preload=preload).start()
        self._trainer_of = overrides

    def _follow(self, step: int, cell: Cell, outcome: Outcome) -> int:
        """Until a step and its checkpoint are complete; returns how often the trainer had to be started."""
        services, record = self.services, self.services.record(self._run)
        deadline, starts = time.monotonic() + _FOLLOW_SECONDS, 0
        while record.last_step() < step or record.last_checkpoint() < step:
            if time.monotonic() > deadline:
                raise RuntimeError(f"step {step} did not come; it waits for {services.status().get('waiting_for')}")
            if not services.trainer.runs:
                outcome.ended = outcome.ended or services.trainer.last_words(3)
                self._remembered = record.journalled() | self._remembered
                if (starts := starts + 1) > _MOST_STARTS:
                    raise RuntimeError(f"the run does not go on: {services.trainer.last_words()}")
                self._start(() if cell.kind.name != kinds.CLOCK else ("clock",))
            time.sleep(0.05)
        return starts

    def _give_up_run(self) -> None:
        """What could not be followed is left behind; the next cell begins a run of its own."""
        self.services.trainer.kill()
        self._run = ""
        for program in (self.services.retriever, self.services.policy):
            program.signal_all(signal.SIGCONT)
            if not answers(program.port, "/readyz"):
                program.kill()


def _more(before: dict[str, dict[str, int]], services: Services) -> dict[str, int]:
    """What the proxies have counted since, of what they did and not only passed on."""
    more: dict[str, int] = {}
    for name, proxy in services.proxies.items():
        for what, count in dict(proxy.counts).items():
            if not what.startswith("/") and (rise := count - before[name].get(what, 0)):
                more[what] = more.get(what, 0) + rise
    return more
