"""How each kind of fault begins, and how it is undone."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.faults import kinds
from benchmarks.faults.cells import Cell
from benchmarks.faults.damage import fill, make_room, spoil, spoil_file
from benchmarks.faults.kinds import POLICY, RETRIEVER, SPOILT, TRAINER
from benchmarks.faults.record import Record
from benchmarks.faults.system.programs import Program
from benchmarks.faults.system.services import OTHER_INDEX, Services, free_port

_NOTICED_SECONDS = 90.0
_JUMPS = ("+2d", "-2d", "+1h", "-1h")


@dataclass
class Injection:
    """One fault. `notes` is what it did in words; `spoilt` names files of the run that it changed.

    `refusals` is what was said by whom it should have been said, and was not.
    """

    services: Services
    cell: Cell
    run: str
    notes: list[str] = field(default_factory=list)
    spoilt: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    @property
    def target(self) -> Program:
        programs = {POLICY: self.services.policy, RETRIEVER: self.services.retriever, TRAINER: self.services.trainer}
        return programs[self.cell.target]

    @property
    def record(self) -> Record:
        return self.services.record(self.run)

    def begin(self) -> None:
        """Let it happen; quick, since it may be called from within a proxy."""
        name = self.cell.kind.name
        fault = kinds.network_fault(name, self.cell.random().randrange(6))
        if fault is not None:
            self.services.proxies[self.cell.target].inject(fault)
        elif name in (kinds.HANG, kinds.HANG_FOR_GOOD):
            self.target.signal_all(signal.SIGSTOP)
        elif name == kinds.OTHER_WEIGHTS:
            self._threads.append(threading.Thread(target=self.services.give_other_weights, daemon=True))
            self._threads[-1].start()
        elif name == kinds.FULL_DISK:
            fill(self.services.disk)
        elif name == kinds.CLOCK:
            jump = self.cell.random().choice(_JUMPS)
            self.services.clock.write_text(jump + "\n", encoding="utf-8")
            self.notes.append(f"by {jump}")
        else:
            self.target.signal_all(signal.SIGKILL)

    def end(self) -> None:
        """Let the fault last as long as it does, then undo it; a trainer that has ended is left to the caller."""
        name, kind = self.cell.kind.name, self.cell.kind
        for thread in self._threads:
            thread.join(60)
        if name == kinds.HANG_FOR_GOOD and self.cell.target == TRAINER:
            self._a_second_trainer_is_refused()
            self.target.kill()
        elif name in (kinds.FULL_DISK, kinds.HANG_FOR_GOOD):
            self._await_end_of_run()
            make_room(self.services.disk)
            self.target.signal_all(signal.SIGCONT)
        elif name == kinds.HANG:
            time.sleep(kind.lasts)
            self.target.signal_all(signal.SIGCONT)
        elif name in SPOILT:
            self.target.kill()
            self.spoilt.append(spoil(self.record, SPOILT[name]))
            self.notes += self.spoilt
        elif name == kinds.MANIFEST:
            self._a_spoilt_index_is_refused()
        elif name == kinds.OTHER_INDEX:
            self.target.kill()
            self._with_another_index()
        elif name == kinds.KILL:
            self.target.kill()
            if self.cell.target != TRAINER:
                self._restart()
        elif self.cell.target in self.services.proxies and kind.lasts:
            time.sleep(kind.lasts)
            self.services.proxies[self.cell.target].heal()

    def undo(self) -> None:
        """Whatever happened, leave services as they should be."""
        for proxy in self.services.proxies.values():
            proxy.forget()
            proxy.heal()
        make_room(self.services.disk)
        for program in (self.services.retriever, self.services.policy, self.services.trainer):
            if program.runs:
                program.signal_all(signal.SIGCONT)

    def _restart(self) -> None:
        self.target.start()
        self.target.await_ready()

    def _await_end_of_run(self) -> None:
        deadline = time.monotonic() + _NOTICED_SECONDS
        while self.services.trainer.runs and time.monotonic() < deadline:
            time.sleep(0.1)

    def _a_second_trainer_is_refused(self) -> None:
        first, log = self.services.trainer, self.services.work / "logs" / "second.log"
        log.unlink(missing_ok=True)
        arguments = [*first.arguments, f"trainer.port={free_port()}"]
        second = Program("a second trainer", arguments, 0, log, first.environment)
        second.start()
        _await(lambda: not second.runs, 120)
        if second.exit_code != 2 or "is in use by process" not in second.last_words():
            self.refusals.append(f"a second trainer ended with {second.exit_code}: {second.last_words()}")
        second.kill()
        self.notes.append("a second trainer was refused by the lock")

    def _a_spoilt_index_is_refused(self) -> None:
        self.target.kill()
        manifest = self.services.data / "indexes" / "wikipedia-leads" / "manifest.json"
        whole = manifest.with_name("whole.copy")
        shutil.copyfile(manifest, whole)
        try:
            spoil_file(manifest)
            self.target.start()
            _await(lambda: not self.target.runs, 60)
            if self.target.exit_code != 2 or "manifest" not in self.target.last_words():
                self.refusals.append(f"the retriever, of a spoilt manifest: {self.target.last_words()}")
            self.notes.append(f"the retriever: {self.target.last_words(1)}")
            self.target.kill()
        finally:
            whole.replace(manifest)
        self._restart()

    def _with_another_index(self) -> None:
        usual, target = self.target.arguments, self.target
        target.arguments = [*usual, f"corpus.index={OTHER_INDEX}"]
        try:
            self._restart()
            # The step under way may have searched all that it needs; the one after it may not be made.
            two_more = self.record.last_step() + 2
            _await(lambda: not self.services.trainer.runs or self.record.last_step() >= two_more, 60)
            if self.services.trainer.runs:
                self.refusals.append("the run went on and searched another index")
        finally:
            target.kill()
            target.arguments = usual
            self._restart()


def _await(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
