"""A command that does one kind of work until it is stopped; `test_stopping.py` starts it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from contextlib import suppress

from anyio import to_thread

from research.errors import ServiceError
from services.process import stopping


def blocked() -> None:
    """Something that sees no signal, as a long call into C does not."""
    while True:
        with suppress(stopping.Stopped):
            print("working", flush=True)
            time.sleep(60)


def deaf() -> None:
    print("working", flush=True)
    threading.Thread(target=lambda: time.sleep(60), name="a thread that does not end").start()
    time.sleep(60)


async def anyio_worker() -> None:
    """What FastAPI does with a route that is no coroutine: its thread waits for more work."""
    await to_thread.run_sync(lambda: None)
    print("working", flush=True)
    await asyncio.sleep(60)


async def cleaning_up() -> None:
    try:
        print("working", flush=True)
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0.05)
        print("cleaned up", flush=True)


def child() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with stopping.killing(process.kill), suppress(stopping.Stopped):
        print(f"working\n{process.pid}", flush=True)
        time.sleep(60)
    with stopping.killing(process.kill):
        time.sleep(60)


def giving_up() -> None:
    print("working", flush=True)
    threading.Timer(0.2, lambda: stopping.give_up(ServiceError("a service died five times"))).start()
    time.sleep(60)


def main() -> None:
    kind = sys.argv[1]
    stopping.GRACE_SECONDS = float(sys.argv[2])
    stopping.install()
    try:
        with stopping.keeping(lambda: "all of it is kept"):
            if kind in ("anyio_worker", "cleaning_up"):
                stopping.run(globals()[kind]())
            else:
                globals()[kind]()
    except stopping.Stopped as stopped:
        print(stopping.reason() or stopping.last_words(), file=sys.stderr)
        stopping.leave(2 if stopping.reason() else 128 + stopped.number)


if __name__ == "__main__":
    main()
