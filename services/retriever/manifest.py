"""What an index was built from, and whether it fits the encoder that is to query it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from research import config
from research.errors import AssetError, ConfigurationError
from research.files import write_json
from services.retriever.checkpoint import Checkpoint

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

_REBUILD = "build it again with `research index`"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what the vectors mean. The runtime that computed them is not part of it."""

    format_version: int
    encoder_digest: str
    pooling: str
    query_prefix: str
    passage_prefix: str
    max_passage_tokens: int
    dimension: int
    corpus_sha256: str

    @property
    def revision(self) -> str:
        """Sixteen hex digits that name this recipe."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def recipe_for(checkpoint: Checkpoint, encoder: config.Encoder, corpus_sha256: str) -> Recipe:
    """The recipe of an index over this corpus with this encoder."""
    return Recipe(
        format_version=FORMAT_VERSION,
        encoder_digest=checkpoint.digest,
        pooling=checkpoint.pooling,
        query_prefix=encoder.query_prefix,
        passage_prefix=encoder.passage_prefix,
        max_passage_tokens=encoder.max_passage_tokens,
        dimension=checkpoint.dimension,
        corpus_sha256=corpus_sha256,
    )


@dataclass(frozen=True, slots=True)
class Manifest:
    """The `manifest.json` of a published index."""

    recipe: Recipe
    count: int
    encoder: str
    build_backend: str
    created: str

    def write(self, directory: Path) -> None:
        """Write `manifest.json` atomically; the recipe's fields lie flat beside the others."""
        flat = asdict(self)
        recipe = flat.pop("recipe")
        write_json(directory / MANIFEST, {**recipe, **flat, "revision": self.recipe.revision})

    def refuse_unless_fits(self, checkpoint: Checkpoint, encoder: config.Encoder, directory: Path) -> None:
        """Raise ConfigurationError, naming each difference, if `encoder` cannot query this index."""
        wanted = recipe_for(checkpoint, encoder, self.recipe.corpus_sha256)
        differences = [
            f"{name} {built!r} instead of {asked!r}"
            for name in ("dimension", "pooling", "query_prefix", "passage_prefix")
            if (built := getattr(self.recipe, name)) != (asked := getattr(wanted, name))
        ]
        # By content, not by name: the same files may be a hub name here and a directory there.
        if self.recipe.encoder_digest != wanted.encoder_digest:
            built_with = f"{self.encoder} ({self.recipe.encoder_digest[:12]})"
            differences.insert(0, f"{built_with} instead of {checkpoint.name} ({checkpoint.digest[:12]})")
        if differences:
            raise ConfigurationError(
                f"index {directory} was built with another encoder: {'; '.join(differences)}; "
                f"{_REBUILD}, or set encoder.* to what the index was built with"
            )


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a published index.

    Raises:
        AssetError: there is no index, or its manifest is broken or of another format version.
    """
    path = directory / MANIFEST
    try:
        flat = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AssetError(f"there is no index in {directory} ({error.strerror}); {_REBUILD}") from error
    except ValueError as error:
        raise AssetError(f"{path} is broken ({error}); {_REBUILD}") from error
    if not isinstance(flat, dict) or flat.get("format_version") != FORMAT_VERSION:
        raise AssetError(f"{path} is not of index format {FORMAT_VERSION}; {_REBUILD}")
    try:
        manifest = Manifest(
            recipe=Recipe(**{field.name: flat[field.name] for field in fields(Recipe)}),
            **{field.name: flat[field.name] for field in fields(Manifest) if field.name != "recipe"},
        )
    except KeyError as error:
        raise AssetError(f"{path} lacks {error}; {_REBUILD}") from error
    if flat.get("revision") != manifest.recipe.revision:
        raise AssetError(f"{path} was edited: its revision does not match its fields; {_REBUILD}")
    return manifest
