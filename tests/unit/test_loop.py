"""What the loop refuses to learn from."""

from __future__ import annotations

import pytest

from research.episode import Episode
from research.errors import TrainingError
from services.trainer.loop import require_version


def episode(*versions: str) -> Episode:
    return Episode("Q?", [1], versions=list(versions))


def test_episodes_of_the_published_weights_pass() -> None:
    require_version([episode("3", "", "3"), episode()], 3)


def test_episodes_of_a_policy_that_was_started_anew_are_refused() -> None:
    with pytest.raises(TrainingError, match="version 0 instead of 3"):
        require_version([episode("3", "3"), episode("3", "", "0")], 3)
