"""`[turns]`: what a single turn of an episode is worth in training, beside the reward of its answer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from research.settings.base import Section


class TurnsConfig(Section):
    """Credit for turns. A turn's own credit, minus the mean of its group's at that turn, is added to the advantages of
    its tokens, which are in units of reward, or of its deviation with `grpo.scale_advantages`."""

    void: Literal["train", "mask_turn", "mask_episode"] = Field(
        "train",
        description="what becomes of a turn that neither searches validly nor answers, which ends its episode: it is "
        "trained on as any other; its tokens get the advantage 0; or its episode is left out (SimpleTIR)",
    )
    search_gain: float = Field(
        0.0, ge=0, description="credit of a search that brings a supporting passage that none before it brought"
    )
    search_loss: float = Field(
        0.0, ge=0, description="taken from a search that brings only passages that searches before it brought, or none"
    )
    search_cost: float = Field(0.0, ge=0, description="taken from every search")

    @property
    def credited(self) -> bool:
        """Whether any turn gets a credit of its own."""
        return self.search_gain > 0 or self.search_loss > 0 or self.search_cost > 0
