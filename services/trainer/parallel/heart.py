"""Signs of life between ranks, so that one that hangs is noticed within a minute, in any phase, and by name.

torch sees a closed connection at once, but a hang only by the time-out of a collective; the watchdog of NCCL watches
its own process, and torchrun only whether a process exists.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import NoReturn

from torch.distributed.distributed_c10d import PrefixStore, Store

# What a rank counts as lost after; the longest that any call here kept Python's lock was .3 s (ADR 074).
BOUND_SECONDS = 60.0
_BEAT_SECONDS = 1.0
# So long a rank must be silent to be named as the one whose connection was closed.
_NAMED_AFTER, _NAMING_SECONDS = 3, 8.0
_LEFT = b"left"


def is_store_shared() -> bool:
    """Whether torchrun keeps the store of the ranks, in all of its attempts; else rank 0 does, anew in each."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


class Heart:
    """Counts in the group's store while this process lives, and ends it if another's count stands still.

    All times are counted in rounds of this process: if it was itself stopped, or kept from running, nobody is blamed.
    """

    def __init__(self, store: Store, rank: int, world: int) -> None:
        """Show the first sign of life; `start` follows when all ranks have made theirs."""
        # A connection of its own: others wait on theirs.
        self._store = PrefixStore("hearts", store.clone())  # type: ignore[attr-defined]  # not in the stubs
        self._rank, self._world = rank, world
        self._names: list[str] = []
        self._last = [b""] * world
        self._silent_rounds = [0] * world
        self._unanswered_rounds = 0
        self._ended, self._silent = threading.Event(), threading.Event()
        self._store.set(f"name/{rank}", f"rank {rank} (process {os.getpid()} on {socket.gethostname()})")
        self._store.set(f"beat/{rank}", "0")
        self._beating = threading.Thread(target=self._beat, name="heart", daemon=True)

    def start(self) -> None:
        """Beat and watch until `stop`."""
        self._names = [name.decode() for name in self._store.multi_get([f"name/{r}" for r in range(self._world)])]
        self._beating.start()
        threading.Thread(target=self._watch, name="watch of the hearts", daemon=True).start()

    def stop(self) -> None:
        """Leave in order: nobody waits for this rank any more."""
        self._ended.set()
        self._beating.join(_NAMING_SECONDS)  # the store may be gone before us

    def fall_silent(self) -> None:
        """Show no more signs of life: this rank failed alone, and the others wait for it. All end within the bound."""
        self._silent.set()

    def lost(self) -> str:
        """Who is silent, after a connection was closed; waits a few seconds to be sure. Empty if nobody is."""
        until = time.monotonic() + _NAMING_SECONDS
        while time.monotonic() < until:
            if found := self._silent_for(_NAMED_AFTER):
                return found
            time.sleep(_BEAT_SECONDS / 4)
        return ""

    def _silent_for(self, rounds: int) -> str:
        found = [name for name, silent in zip(self._names, self._silent_rounds, strict=True) if silent >= rounds]
        if self._unanswered_rounds >= rounds:
            found.append(self._keeper())
        return ", ".join(found)

    def _keeper(self) -> str:
        if is_store_shared():
            return f"torchrun on {os.environ['MASTER_ADDR']}, which keeps the store of the ranks,"
        return self._names[0]

    def _beat(self) -> None:
        """Every second: show a sign of life, and read those of all. The store may keep us waiting for ever."""
        count, keys = 0, [f"beat/{rank}" for rank in range(self._world)]
        while not self._ended.wait(_BEAT_SECONDS):
            count += 1
            try:
                if not self._silent.is_set():
                    self._store.set(keys[self._rank], str(count))
                found = self._store.multi_get(keys)
            except RuntimeError:  # `_watch` counts how often
                continue
            self._unanswered_rounds = 0
            for rank, beat in enumerate(found):
                silent = beat == self._last[rank] != _LEFT
                self._silent_rounds[rank] = self._silent_rounds[rank] + 1 if silent else 0
            self._last = found
        try:
            self._store.set(keys[self._rank], _LEFT.decode())
        except RuntimeError:
            return  # whoever kept the store has left before us

    def _watch(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            self._unanswered_rounds += 1
            if found := self._silent_for(round(BOUND_SECONDS / _BEAT_SECONDS)):
                self._end(found)

    def _end(self, lost: str) -> NoReturn:
        """At once: other threads wait for the lost rank and cannot be interrupted."""
        text = (
            f"{lost} has shown no sign of life for {BOUND_SECONDS:.0f} s; {self._names[self._rank]} ends, so that the "
            "run can go on from its last checkpoint: torchrun starts it again if it was given --max-restarts\n"
        )
        os.write(2, text.encode())
        os._exit(1)
