"""`[paths]` and `[model]`: where files lie, and the language model that is trained and served."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from research.settings.base import PositiveInt, Section


class PathsConfig(Section):
    """Where files lie; relative paths count from the working directory."""

    data: Path = Field(Path("data"), description="prepared models, corpora, indexes and questions")
    runs: Path = Field(Path("runs"), description="one directory per training run")


class ModelConfig(Section):
    """The language model that is trained and served."""

    name: str = Field(description="`builtin:smollm2-135m-instruct`, a hub name, or a checkpoint directory")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="number format that policy and learner compute in; auto: bfloat16 on GPUs and on CPUs that are "
        "fast at it, else float32",
    )
    max_model_len: PositiveInt = Field(description="context length of the policy server, in tokens (vLLM's name)")
