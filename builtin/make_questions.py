"""The built-in questions: made with the retriever as it is served, and made again when anything has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from builtin.questions import EDITION, build_questions
from builtin.questions.reach import Found, reached
from research.atomic_io import sha256_of, write_json
from research.errors import AssetError
from research.model_paths import local_checkpoint
from research.passages import iter_passages
from research.questions import write_questions
from research.questions.sources import builtin_path
from research.settings import Settings
from services.process.progress import progress

_BATCH = 64
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
# At most this many words of a passage are shown; the search determines how many.
_SERVED_WORDS = 40


def builtin_questions_are_current(settings: Settings) -> bool:
    """Whether the question files exist and were made by this edition with these settings."""
    try:
        noted = json.loads(_note(settings.paths.data).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    files = [builtin_path(settings.paths.data, split) for split in ("train", "held_out")]
    return _is_same(noted, settings) and all(path.is_file() for path in files)


def make_builtin_questions(settings: Settings, passages: Path) -> None:
    """Derive the question set, keep what the retriever finds, and write it with a note of its inputs.

    Raises AssetError or ConfigurationError if the index or the encoder is missing or corrupt.
    """
    data = settings.paths.data
    search = ServedSearch(settings)
    split = build_questions(
        list(iter_passages(passages)), served_words=_SERVED_WORDS, reached=lambda hops: reached(hops, search)
    )
    _note(data).unlink(missing_ok=True)
    write_questions(builtin_path(data, "held_out"), split.held_out)
    write_questions(builtin_path(data, "train"), split.train)
    write_json(_note(data), _made_with(settings))


class ServedSearch:
    """Best passages from the retriever's own encoder and index, truncated as in an episode."""

    def __init__(self, settings: Settings) -> None:
        from transformers import AutoTokenizer

        from services.retriever.encoder.checkpoint import open_checkpoint
        from services.retriever.encoder.encoder import load_encoder
        from services.retriever.index.search_index import SearchIndex

        data, threads = settings.paths.data, settings.retriever.threads
        checkpoint = open_checkpoint(settings.encoder.name, data)
        self._index = SearchIndex(settings.corpus.index, settings.index_dir, checkpoint, settings.encoder, threads)
        self._encoder = load_encoder(checkpoint, settings.encoder, settings.encoder.backend, threads, data)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(local_checkpoint(settings.model.name, data))
        self._limit = settings.episode.max_passage_tokens

    def __call__(self, queries: Sequence[str]) -> list[Found]:
        """Search for every query; shows progress."""
        found: list[Found] = []
        with progress("searching", "queries", total=len(queries)) as advance:
            for start in range(0, len(queries), _BATCH):
                batch = queries[start : start + _BATCH]
                scores, positions = self._index.dense.search(self._encoder.encode_queries(batch), 2)
                for (best, second), (position, _) in zip(scores.tolist(), positions.tolist(), strict=True):
                    passage = self._index.passages.record(position)
                    found.append(Found(passage["title"], self._cut(passage["text"]), best - second))
                advance(len(batch))
        return found

    def _cut(self, text: str) -> str:
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        if self._limit is None or len(ids) <= self._limit:
            return text
        shown: str = self._tokenizer.decode(ids[: self._limit], clean_up_tokenization_spaces=False)
        return shown.rstrip("\ufffd")


def _note(data: Path) -> Path:
    return data / "questions" / "builtin.json"


def _made_with(settings: Settings) -> dict[str, Any]:
    """Everything that decides which questions result."""
    from services.retriever.index.manifest import read_manifest

    return {
        "edition": EDITION,
        "index_revision": read_manifest(settings.index_dir).revision,
        "encoder_backend": settings.encoder.backend,
        "tokenizer": _tokenizer_digest(settings.model.name, settings.paths.data),
        "max_passage_tokens": settings.episode.max_passage_tokens,
    }


def _is_same(noted: Any, settings: Settings) -> bool:
    if isinstance(noted, dict) and "model" in noted:  # older notes, which held the model's name instead
        try:
            noted["tokenizer"] = _tokenizer_digest(noted.pop("model"), settings.paths.data)
        except AssetError:
            return False
    return bool(noted == _made_with(settings))


def _tokenizer_digest(model: str, data: Path) -> str:
    """The digest of the tokenizer, the only part of the model that the questions depend on."""
    checkpoint = local_checkpoint(model, data)
    files = [path for name in _TOKENIZER_FILES if (path := checkpoint / name).is_file()]
    return hashlib.sha256("".join(sha256_of(path) for path in files).encode()).hexdigest()
