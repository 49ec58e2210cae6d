"""From a name in the settings to something that a model loader understands."""

from __future__ import annotations

from pathlib import Path

from research.errors import AssetError

BUILTIN_PREFIX = "builtin:"


def builtin_model_dir(name: str, data: Path) -> Path:
    """The directory that `builtin:<model>` stands for, whether or not it exists yet."""
    return data / "models" / name.removeprefix(BUILTIN_PREFIX)


def resolve_model(name: str, data: Path) -> str:
    """Turn `builtin:X` into its directory; leave a directory or a hub name as it is.

    Raises:
        AssetError: the built-in model has not been prepared, or a name that can only be a path does not exist.
    """
    if name.startswith(BUILTIN_PREFIX):
        directory = builtin_model_dir(name, data)
        if not directory.is_dir():
            raise AssetError(f"{name} is not prepared ({directory} does not exist); run `research prepare`")
        return str(directory)
    if name.startswith((".", "/", "~")):
        directory = Path(name).expanduser()
        if not directory.is_dir():
            raise AssetError(f"there is no model directory {directory}")
        return str(directory)
    return name


def local_checkpoint(name: str, data: Path) -> Path:
    """As `resolve_model`, but always a directory on this disk: a hub model is fetched (or found in the hub's cache).

    Raises:
        AssetError: the model is not on disk and the hub cannot provide it.
    """
    resolved = resolve_model(name, data)
    if Path(resolved).is_dir():
        return Path(resolved)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(resolved, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"])
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        told = (
            f"model {name!r} is neither a directory nor available from the hub; `research prepare` fetches it: {reason}"
        )
        raise AssetError(told) from error
