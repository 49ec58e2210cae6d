"""Whether what was promised of a fault has held."""

from __future__ import annotations

from benchmarks.faults.cells import Cell, Outcome
from benchmarks.faults.inject import Injection
from benchmarks.faults.kinds import TRAINER, Promise
from benchmarks.faults.record import Place, Record, Tokens
from benchmarks.faults.system.services import ASKED, GROUPS, SIZE

# Words of which one is in a message that names the fault.
_NAMES = ("the policy", "the retriever", "cannot be written", "No space left", "index", "disk")


def judge(
    outcome: Outcome,
    cell: Cell,
    injection: Injection,
    record: Record,
    step: int,
    starts: int,
    log: str,
    remembered: dict[Place, Tokens],
) -> None:
    """Fill in the outcome of a cell whose fault was met in a step and which has finished the next.

    Args:
        starts: how often the trainer had to be started after the fault.
        log: what the trainer has said since.
        remembered: the episodes that were finished, but in no record yet, when the fault was over.
    """
    both = range(step, step + 2)
    entries = record.steps()
    found = {place: tokens for each in both for place, tokens in record.episodes(each).items()}
    groups = {group for group, _ in found}
    missing = len(both) * GROUPS * SIZE - len(found)
    outcome.lost = SIZE * (len(both) * GROUPS - len(groups))
    outcome.left_out = missing - outcome.lost
    outcome.twice = sum(place in found and found[place] != tokens for place, tokens in remembered.items())
    outcome.retried = sum(entries[each]["infra_errors"] for each in both if each in entries)
    outcome.wrong_files = [each for each in record.damage(both) if not _is_spoilt(each, injection)]
    planned = cell.target == TRAINER and cell.kind.promise is not Promise.GOES_ON
    by_hand = starts - (1 if planned and cell.kind.promise is Promise.SAME_COMMAND else 0)
    if not starts:
        outcome.run = Promise.GOES_ON.value
    else:
        outcome.run = (
            "the same command goes on" if cell.kind.promise is Promise.SAME_COMMAND else "ended; started again"
        )
    if injection.notes:
        outcome.run += f" ({'; '.join(injection.notes)})"

    broken = outcome.broken
    broken += injection.refusals
    if cell.kind.promise is Promise.NAMED:
        if not starts:
            broken.append("the run did not end")
        elif not any(name in outcome.ended for name in _NAMES):
            broken.append("the run ended without the reason")
        by_hand -= 1
    if by_hand > 0:
        broken.append(f"the trainer had to be started {by_hand} times more than promised")
    if outcome.lost or outcome.left_out:
        broken.append(f"{outcome.lost} episodes lost, {outcome.left_out} left out")
    if outcome.twice and cell.kind.name != "spoilt journal":
        broken.append(f"{outcome.twice} finished episodes were sampled again")
    broken += outcome.wrong_files
    for each in both:
        figures = record.evaluation(each) or {}
        answered, failed = (sum(kind[name] for kind in figures.values()) for name in ("n", "failed"))
        if (answered, failed) != (ASKED, 0):
            broken.append(f"evaluation after step {each}: {answered} answered, {failed} failed of {ASKED}")
    if "Traceback" in log:
        broken.append("a traceback in the trainer's log: " + _last_error(log))


def _is_spoilt(fault: str, injection: Injection) -> bool:
    """Whether a fault of a file is what the bench has done itself."""
    if injection.cell.kind.name == "spoilt record of a step":
        return "episodes of step" in fault
    return False


def _last_error(log: str) -> str:
    lines = [line for line in log.splitlines() if "Error" in line]
    return lines[-1].strip()[:200] if lines else ""
