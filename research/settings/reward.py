"""`[reward]`: what an episode earns in training."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from research.settings.base import Section, without_credentials

REWARD_NAMES = ("f1", "em", "cover_em", "f1_penalized", "format", "judge")
_FUNCTION = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


def _weighted(value: Any) -> Any:
    return {value: 1.0} if isinstance(value, str) else value


class RewardConfig(Section):
    """The reward of an episode: one by name, or a sum (docs/rewards.md). Evaluations always report that of `f1`."""

    terms: Annotated[dict[str, float], BeforeValidator(_weighted)] = Field(
        {"f1": 1.0},
        min_length=1,
        description="a name, or weights such as {em = 0.8, format = 0.2}: f1 (F1, .1 for form alone), em, cover_em, "
        "f1_penalized, format, judge, or a function of your own as module:function",
    )
    no_answer_penalty: float = Field(0.1, ge=0, description="what f1_penalized takes for an episode without an answer")
    no_search_penalty: float = Field(0.1, ge=0, description="what f1_penalized takes for one without a search")
    malformed_penalty: float = Field(
        0.1, ge=0, description="what f1_penalized takes for bad form; the penalties add up"
    )
    judge_endpoint: Annotated[str, without_credentials("RESEARCH_JUDGE_API_KEY")] = Field(
        "", description="an OpenAI API that judges answers, as https://host/v1"
    )
    judge_model: str = Field("", description="the name by which it knows the judge")

    @model_validator(mode="after")
    def _terms_are_known(self) -> RewardConfig:
        for name, weight in self.terms.items():
            if name not in REWARD_NAMES and not _FUNCTION.match(name):
                raise ValueError(
                    f"terms: there is no reward {name!r}; there are {', '.join(REWARD_NAMES)}, and functions of your "
                    "own as module:function"
                )
            if not math.isfinite(weight) or weight == 0:
                raise ValueError(f"terms: the weight of {name} is {weight}; leave out what is not to count")
        return self

    @model_validator(mode="after")
    def _judge_has_an_endpoint(self) -> RewardConfig:
        if "judge" in self.terms and not (self.judge_endpoint and self.judge_model):
            raise ValueError("the term judge needs judge_endpoint and judge_model")
        if "judge" not in self.terms and (self.judge_endpoint or self.judge_model):
            raise ValueError("judge_endpoint and judge_model are given, but judge is not among the terms")
        return self
