"""Objectives by name: what each sets of the settings of `[grpo]` that say how an update is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

ObjectiveName = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce++", "reinforce++_baseline"]
# What an episode's reward is compared with.
AdvantageRule = Literal["group", "leave_one_out", "batch", "group_and_batch"]
# What the ratio of new to old policy is taken over.
RatioLevel = Literal["token", "sequence", "product"]
# Where the clip acts: PPO's surrogate, which loses the gradient of what is clipped, or CISPO's weight, which keeps it.
ClipForm = Literal["surrogate", "weight"]
ImportanceCorrection = Literal["tis", "mis", "sequence_mask", "geometric_mask"]

# What each mask keeps unless `importance_band` says otherwise: IcePop's and verl's, and SkyRL's for the geometric mean.
IMPORTANCE_BANDS: Mapping[ImportanceCorrection, tuple[float, float]] = {
    "mis": (0.5, 2.0),
    "sequence_mask": (0.5, 2.0),
    "geometric_mask": (0.99, 1.01),
}

_PPO = {"clip_form": "surrogate", "clip_low": 0.2, "clip_high": 0.2}
_TOKENS = {"ratio_level": "token", "loss_aggregation": "token"}
_GROUP = {"advantage": "group", "scale_advantages": True}
# The papers of these have no KL term.
_NO_KL = {"kl_coefficient": 0.0}

OBJECTIVES: Mapping[ObjectiveName, Mapping[str, Any]] = {
    "grpo": _GROUP | _TOKENS | _PPO,
    "dr_grpo": _GROUP | _TOKENS | _PPO | _NO_KL | {"scale_advantages": False, "loss_aggregation": "constant"},
    "dapo": _GROUP | _TOKENS | _PPO | _NO_KL | {"clip_high": 0.28},
    "gspo": _GROUP
    | _NO_KL
    | {"ratio_level": "sequence", "loss_aggregation": "sequence"}
    | {"clip_form": "surrogate", "clip_low": 3e-4, "clip_high": 4e-4},
    # No lower bound, and 5 as the upper one, as in TRL and ScaleRL.
    "cispo": _GROUP | _TOKENS | _NO_KL | {"clip_form": "weight", "clip_low": 1.0, "clip_high": 4.0},
    "rloo": _PPO
    | {"advantage": "leave_one_out", "scale_advantages": False}
    | {"ratio_level": "product", "loss_aggregation": "constant"},
    "reinforce++": _TOKENS | _PPO | {"advantage": "batch", "scale_advantages": True},
    "reinforce++_baseline": _TOKENS | _PPO | {"advantage": "group_and_batch", "scale_advantages": True},
}


def with_objective(values: Any) -> Any:
    """What is set in `[grpo]`, over what its objective sets; anything that names no known objective stays as it is."""
    if not isinstance(values, Mapping):
        return values
    return {**OBJECTIVES.get(values.get("objective", "grpo"), {}), **values}
