"""Reads GPUs as they are named on the command line."""

from __future__ import annotations

import re

from apps.plan.estimate import GPUS, Fleet
from research.errors import ConfigurationError


def fleet(text: str, option: str) -> Fleet:
    """`4xH100` as a fleet; raises ConfigurationError that names `option` and what is known."""
    known = {name.lower(): name for name in GPUS}
    match = re.fullmatch(r"(\d+)\s*x\s*([a-z0-9]+)", text.strip().lower())
    if match is None or int(match[1]) < 1 or match[2] not in known:
        raise ConfigurationError(
            f"{option}: {text!r} is not a number of GPUs such as 4xH100; known are {', '.join(GPUS)}"
        )
    return Fleet(int(match[1]), known[match[2]])
