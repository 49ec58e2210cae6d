"""`research export`: the weights of a run as an ordinary checkpoint, with a card that describes the training.

The export loads with plain transformers and plain `vllm serve`: safetensors, tokenizer, chat template, configuration
of the model and of generation. `prompt.txt` holds the rules that the model was trained with.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from apps.export.model_card import model_card
from research.atomic_io import atomic_directory
from research.config import recorded_settings
from research.errors import AssetError, ConfigurationError, ServiceError
from research.prompts import TRAINED_PROMPT, load_prompt
from research.weights.checksummed_dir import MANIFEST, corruption_in

CARD = "README.md"


def export_run(run: Path, target: Path) -> Path:
    """Write the newest weights of a run to the new directory `target`; returns it.

    Raises:
        AssetError: there is no such run, or it has no weights, or they are spoilt.
        ConfigurationError: `target` exists already.
    """
    settings = run_settings(run)
    weights = latest_weights(run, settings)
    if target.exists():
        raise ConfigurationError(f"--out: {target} exists already; name another directory or move it away")
    with atomic_directory(target) as partial:
        shutil.copytree(weights, partial, dirs_exist_ok=True)
        for file in partial.iterdir():
            file.chmod(0o644)
        (partial / MANIFEST).unlink(missing_ok=True)  # it is of the run's directory, which has no card
        if not (partial / TRAINED_PROMPT).is_file():  # versions of long ago
            prompt = load_prompt(settings["episode"]["prompt"])
            (partial / TRAINED_PROMPT).write_text(prompt.source + "\n", encoding="utf-8")
        prompt = load_prompt(str(partial / TRAINED_PROMPT))
        (partial / CARD).write_text(model_card(run, weights, settings, prompt, target.name), encoding="utf-8")
    return target


def run_settings(run: Path) -> dict[str, Any]:
    """The settings that the run was started with; AssetError if there is no run."""
    settings = recorded_settings(run)
    if settings is None:
        raise AssetError(f"there is no run at {run}; give the name of a run in `runs/`, or its directory")
    return settings


def latest_weights(run: Path, settings: dict[str, Any]) -> Path:
    """The directory of the newest published version of a run; AssetError if there is none."""
    published = settings.get("checkpoints", {}).get("publish_dir")
    directory = Path(published) if published else run / "weights"
    versions = sorted(each for each in directory.glob("version-*") if each.name.rpartition("-")[2].isdigit())
    if not versions:
        raise AssetError(f"the run {run} has published no weights yet (none in {directory})")
    newest = versions[-1]
    if (newest / MANIFEST).is_file() and (fault := corruption_in(newest)) is not None:
        raise AssetError(f"{newest} is spoilt ({fault}); delete it to export the version before it")
    return newest


def push_to_hub(directory: Path, repository: str) -> str:
    """Upload an exported model; returns its address.

    Raises:
        ServiceError: the hub refuses, or is unavailable.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hub = HfApi()
    try:
        hub.create_repo(repository, exist_ok=True, private=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=directory).repo_url)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ServiceError(
            f"--push: {repository} could not be pushed ({error}); is HF_TOKEN set? The export is in {directory}"
        ) from error
