"""Which weights may have written an episode: the published ones, or with overlap those of the last few updates too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from research.episode.agent import Episode
from research.errors import TrainingError


class WrongWeightsError(TrainingError):
    """A policy server sampled with weights that it should not serve."""


def require_version(episodes: Sequence[Episode], version: str) -> None:
    """Raise WrongWeightsError if other weights than `version` wrote any token."""
    others = {written for episode in episodes for written in episode.weight_versions} - {version}
    if others:
        raise WrongWeightsError(
            f"the policy served weight version {', '.join(sorted(others))} instead of {version}; was it restarted? "
            "Start the run again: it publishes its weights and continues from the last checkpoint"
        )


@dataclass(frozen=True, slots=True)
class Versions:
    """The weights of a run that its episodes may come from.

    Attributes:
        published: the number of the version that all servers were given last.
        max_staleness: of how many updates before that an episode may be trained on.
        first: the first version that GRPO samples with; one before would be that of a server which lost its weights.
    """

    published: Callable[[], int]
    max_staleness: int = 0
    first: int = 0

    def require(self, episode: Episode) -> None:
        """Raise WrongWeightsError if weights wrote the episode that no server may have had while it was sampled.

        How old they may be is not asked here: that depends on when it is trained on.
        """
        if not self.max_staleness:
            require_version([episode], str(self.published()))
            return
        # While a version is being published, some servers have it already.
        known = {str(number) for number in range(self.first, self.published() + 2)}
        if others := [version for version in episode.weight_versions if version not in known]:
            raise WrongWeightsError(f"the policy served weight version {', '.join(others)}, which is not this run's")

    def allow(self, episode: Episode, ahead: int = 0) -> bool:
        """Whether a recorded episode may still be used; `ahead` versions will be made again that are not published."""
        if not episode.weight_versions:
            return False
        try:
            replace(self, published=lambda: self.published() + ahead).require(episode)
        except WrongWeightsError:
            return False
        return True

    def staleness(self, episode: Episode) -> int:
        """How many updates the published version is ahead of the oldest weights that wrote a token."""
        return max((self.published() - int(version) for version in episode.weight_versions), default=0)

    def holds(self, episode: Episode) -> bool:
        """Whether an episode may be trained on now: not too old, and of no weights that a kill has lost."""
        lost = any(int(version) > self.published() for version in episode.weight_versions)
        return not lost and self.staleness(episode) <= self.max_staleness
