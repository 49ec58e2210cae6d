"""Which weights a policy server starts with: `policy.serve`."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from research.clients import INITIAL_VERSION
from research.errors import AssetError
from research.model_paths import local_checkpoint
from research.settings import Settings
from research.weights.run_weights import newest_good, read_origin

VERSION_VARIABLE = "RESEARCH_POLICY_WEIGHT_VERSION"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StartWeights:
    """A checkpoint, the version that it is served as, and why it was chosen."""

    path: Path
    version: str
    why: str


def start_weights(settings: Settings) -> StartWeights:
    """Resolve `policy.serve`: the base model, the newest good weights of the run, or a path.

    Raises AssetError if there is no such model or path.
    """
    serve = settings.policy.serve
    if serve not in ("latest", "base"):
        path = Path(serve).expanduser()
        if not any(path.glob("*.safetensors")):
            raise AssetError(f"policy.serve: {serve} is neither 'latest', nor 'base', nor a directory with weights")
        origin = read_origin(path)
        return StartWeights(path, str(origin.version) if origin else INITIAL_VERSION, f"policy.serve = {serve}")
    if serve == "latest" and (found := newest_good(settings, logger.warning)) is not None:
        number, path = found
        return StartWeights(path.resolve(), str(number), f"the newest weights of the run {settings.run!r}")
    why = "policy.serve = base" if serve == "base" else f"the run {settings.run!r} has published no weights yet"
    return StartWeights(local_checkpoint(settings.model.name, settings.paths.data), INITIAL_VERSION, why)


def start_version() -> str:
    """The version of the weights that this server was started with; for vLLM's processes."""
    return os.environ.get(VERSION_VARIABLE, INITIAL_VERSION)
