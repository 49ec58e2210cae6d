"""What an index was built from, and whether it fits the encoder that will query it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from research.atomic_io import write_json
from research.errors import AssetError, ConfigurationError
from research.settings.retriever import CorpusConfig, EncoderConfig
from services.retriever.encoder.checkpoint import Checkpoint
from services.retriever.index.faiss_config import FaissConfig
from services.retriever.index.file_sums import REPAIR, FileSum, advice, fault_in
from services.retriever.index.milvus import MilvusCollection

FORMAT_VERSION: Literal[2] = 2
MANIFEST = "manifest.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Encoding(_Frozen):
    """Everything that decides what the vectors mean. The runtime that computed them is not part of it."""

    encoder_digest: str
    pooling: str
    query_prefix: str
    passage_prefix: str
    max_passage_tokens: int
    dimension: int


class Recipe(_Frozen):
    """Everything that decides what a search finds."""

    format_version: Literal[2] = FORMAT_VERSION
    encoding: Encoding
    corpus_sha256: str
    structure: str
    lexical: bool
    # Of the FAISS file whose vectors these are. Left out where there is none: older revisions stay what they were.
    imported_sha256: str | None = Field(None, exclude_if=lambda sum_: sum_ is None)

    @property
    def revision(self) -> str:
        """Sixteen hex digits that name this recipe."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:16]

    def covers(self, wanted: Recipe) -> bool:
        """Whether an index of this recipe is what `wanted` asks for.

        An imported one is also what a build over the same passages asks for: nobody wants to encode them anew.
        """
        if self.imported_sha256 is None or wanted.imported_sha256 is not None:
            return self == wanted
        tokens = {"max_passage_tokens": wanted.encoding.max_passage_tokens}
        same = {
            "imported_sha256": None,
            "structure": wanted.structure,
            "encoding": self.encoding.model_copy(update=tokens),
        }
        return self.model_copy(update=same) == wanted


class Imported(_Frozen):
    """Where imported vectors come from, and what was found out about them.

    Attributes:
        file: name of the FAISS file.
        kind: its class in FAISS.
        metric: what it compares vectors by.
        text: how passages were written to be embedded, as far as the check could tell.
        cosine: median of sampled passages, embedded by our encoder, with the imported vectors.
        queries: how many titles were searched for recall.
        recall: at each depth, against exact search among the imported vectors; None if the file has only codes.
    """

    file: str
    kind: str
    metric: Literal["inner product", "L2"]
    text: str
    cosine: float
    queries: int
    recall: dict[int, float] | None


class Manifest(_Frozen):
    """The `manifest.json` of a published index."""

    revision: str
    recipe: Recipe
    count: int
    encoder: str
    build_backend: str
    created: str
    structure: FaissConfig | None
    milvus: MilvusCollection | None
    # Older indexes have none.
    files: dict[str, FileSum] | None = None
    imported: Imported | None = Field(None, exclude_if=lambda imported: imported is None)

    def write(self, directory: Path) -> None:
        """Write `manifest.json` atomically."""
        write_json(directory / MANIFEST, self.model_dump())

    def check_files(self, directory: Path) -> None:
        """Raise AssetError, naming the file, if one is not as it was when the index was built."""
        try:
            fault = fault_in(directory, self.files or {})
        except OSError as error:
            raise AssetError(f"cannot read {error.filename} ({error.strerror}); {advice(error)}") from error
        if fault is not None:
            raise AssetError(f"the index is spoilt: {fault}; {self._repair}")

    def check_encoder(self, checkpoint: Checkpoint, encoder: EncoderConfig, directory: Path) -> None:
        """Raise ConfigurationError, naming each difference, if `encoder` cannot query this index."""
        built, wanted = self.recipe.encoding, encoding_of(checkpoint, encoder)
        differences = [
            f"{name} {there!r} instead of {asked!r}"
            for name in ("dimension", "pooling", "query_prefix", "passage_prefix")
            if (there := getattr(built, name)) != (asked := getattr(wanted, name))
        ]
        # By content, not by name: the same files may be a hub name here and a directory there.
        if built.encoder_digest != wanted.encoder_digest:
            built_with = f"{self.encoder} ({built.encoder_digest[:12]})"
            differences.insert(0, f"{built_with} instead of {checkpoint.name} ({checkpoint.digest[:12]})")
        if differences:
            raise ConfigurationError(
                f"index {directory} was built with another encoder: {'; '.join(differences)}; "
                f"{self._repair}, or set encoder.* to what the index was built with"
            )

    @property
    def _repair(self) -> str:
        return f"import {self.imported.file} again with `research index --import`" if self.imported else REPAIR


def encoding_of(checkpoint: Checkpoint, encoder: EncoderConfig) -> Encoding:
    """What decides the meaning of the vectors of this encoder under these settings."""
    return Encoding(
        encoder_digest=checkpoint.digest,
        pooling=checkpoint.pooling,
        query_prefix=encoder.query_prefix,
        passage_prefix=encoder.passage_prefix,
        max_passage_tokens=encoder.max_passage_tokens,
        dimension=checkpoint.dimension,
    )


def recipe_for(checkpoint: Checkpoint, encoder: EncoderConfig, corpus: CorpusConfig, corpus_sha256: str) -> Recipe:
    """The recipe of an index over these passages with this encoder, in the form that `corpus` asks for."""
    return Recipe(
        encoding=encoding_of(checkpoint, encoder),
        corpus_sha256=corpus_sha256,
        structure=f"milvus-{corpus.index_type}" if corpus.milvus else corpus.index_type,
        lexical=corpus.hybrid,
    )


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a published index.

    Raises:
        AssetError: there is no index, or its manifest is corrupt or of another format version.
    """
    path = directory / MANIFEST
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AssetError(f"there is no index in {directory} ({error.strerror}); {REPAIR}") from error
    except OSError as error:
        raise AssetError(f"cannot read {path} ({error.strerror}); {advice(error)}") from error
    except ValueError as error:
        raise AssetError(f"{path} is corrupt ({error}); {REPAIR}") from error
    version = noted.get("recipe", {}).get("format_version", 1) if isinstance(noted, dict) else None
    if version != FORMAT_VERSION:
        raise AssetError(f"{path} is not of index format {FORMAT_VERSION}; {REPAIR}")
    try:
        manifest = Manifest.model_validate(noted)
    except ValidationError as error:
        fault = error.errors()[0]
        raise AssetError(f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}; {REPAIR}") from error
    if manifest.revision != manifest.recipe.revision:
        raise AssetError(f"{path} was edited: its revision does not match its recipe; {REPAIR}")
    return manifest
