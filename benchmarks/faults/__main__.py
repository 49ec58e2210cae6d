"""What becomes of a run under every fault, in each of its phases.

Starts a retriever and a policy (real vLLM, a tiny model with the built-in tokenizer), a trainer, and a proxy of ours
before each of the two; needs `research prepare`. A cell of the table is a fault, the service that it befalls, a phase
of the run, and the number of the injection. Everything that has been run is kept in --runs and not run again, so a
bench that was ended goes on with the same command; Ctrl-C ends every process that it has started.

  python -m benchmarks.faults --list                          what there is to run
  python -m benchmarks.faults --only SIGKILL policy rollout   cells whose name has all of these words
  python -m benchmarks.faults --only spoilt,full rollout      of words with commas between them one is enough
  python -m benchmarks.faults --times 10                      ten random injections of each kill, one of all else
  python -m benchmarks.faults --seed 2                        other moments; the same seed meets the same ones
  python -m benchmarks.faults --again --only drip             run again what has been run
  python -m benchmarks.faults --report                        print the table of what has been run
  python -m benchmarks.faults kills --runs DIR                runs of 30 steps with random kills (see kills --help)

A full disk needs root, to mount a small one; clocks that jump need libfaketime. Both are declined where they cannot be.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from benchmarks.faults.bench import Bench
from benchmarks.faults.cells import Cell, Ledger, cells
from benchmarks.faults.damage import small_disk
from benchmarks.faults.report import report
from benchmarks.faults.system.services import started

_DISK_MIB = 400
_LIBFAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


def main() -> None:
    """Run what is asked for and has not been run, or print what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="of the names of cells; all must occur")
    parser.add_argument("--seed", type=int, default=1, help="decides moments within phases, and variants")
    parser.add_argument("--times", type=int, default=1, help="random injections of each kill into each phase, up to 10")
    parser.add_argument("--runs", type=Path, default=Path("runs/faults"), help="where everything is kept")
    parser.add_argument("--libfaketime", type=Path, default=_LIBFAKETIME)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after so long")
    parser.add_argument("--again", action="store_true", help="also what has been run")
    parser.add_argument("--list", action="store_true", help="print the names of cells and whether they have been run")
    parser.add_argument("--report", action="store_true", help="print the table in Markdown")
    arguments = parser.parse_args()
    work: Path = arguments.runs.resolve()
    ledger = Ledger(work / "outcomes.jsonl")
    if arguments.report:
        print(report(ledger.outcomes()))
        return
    wanted = list(cells(arguments.only, arguments.seed, arguments.times))
    if arguments.list:
        for cell in wanted:
            print(f"{'done' if ledger.has(cell) else 'open'}  {cell.name}")
        return
    left = [cell for cell in wanted if arguments.again or not ledger.has(cell)]
    print(f"{len(left)} of {len(wanted)} cells are to be run; outcomes go to {work}", flush=True)
    libfaketime = arguments.libfaketime if arguments.libfaketime.is_file() else None
    if left:
        _run(left, ledger, work, libfaketime, time.monotonic() + 60 * arguments.minutes)


def _run(left: list[Cell], ledger: Ledger, work: Path, libfaketime: Path | None, until: float) -> None:
    with small_disk(work / "disk", _DISK_MIB) as no_disk, started(work, work / "disk") as services:
        bench = Bench(services, no_disk, libfaketime)
        for number, cell in enumerate(left, 1):
            if time.monotonic() > until:
                print(f"the time is over; {len(left) - number + 1} cells are left", flush=True)
                return
            print(f"[{number}/{len(left)}] {cell.name}: ", end="", flush=True)
            outcome = bench.run(cell)
            ledger.add(outcome)
            said = "; ".join(outcome.broken) or "every promise held"
            print(outcome.declined or f"{outcome.met}; {outcome.run}; {outcome.seconds:g} s; {said}", flush=True)


if __name__ == "__main__":
    # A shell has jobs in the background ignore SIGINT, and SIGTERM would leave services behind.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    if sys.argv[1:2] == ["kills"]:
        from benchmarks.faults.kills import main as kills

        kills(sys.argv[2:])
    else:
        main()
