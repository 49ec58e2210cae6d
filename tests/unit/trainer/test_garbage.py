"""Full garbage collections are left to the steps of a run, and everything is as before after it."""

import gc
import weakref

from services.trainer.garbage import collected_between_steps


class Node:
    """Refers to itself, so that only the collector can free it."""

    def __init__(self) -> None:
        self.itself = self


def test_a_run_is_collected_by_hand_and_can_be_freed_after() -> None:
    thresholds, of_run = gc.get_threshold(), Node()
    with collected_between_steps():
        assert gc.get_freeze_count() > 0
        made = Node()
        seen, seen_of_run = weakref.ref(made), weakref.ref(of_run)
        del made, of_run
        gc.collect()
        assert seen() is None
    gc.collect()
    assert seen_of_run() is None
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == thresholds
