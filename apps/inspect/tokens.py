"""Token ids as readable text, if the run's tokenizer is on this disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apps.inspect.read import RunEpisodes
from research.errors import AssetError
from research.model_paths import resolve_model


class TokenTexts:
    """What each token adds to the text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Some decoders drop the space in front of a first token, so every token is decoded after another one.
        self._anchor: list[int] = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._anchor_text = self._decode(self._anchor)
        self._known: dict[int, str] = {}

    def text(self, token: int) -> str:
        """The text of one id; an incomplete character reads as U+FFFD."""
        if token not in self._known:
            self._known[token] = self._decode([*self._anchor, token])[len(self._anchor_text) :]
        return self._known[token]

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def load_token_texts(run: RunEpisodes, data: Path) -> TokenTexts | None:
    """The tokenizer of the run's model, or else of its newest published weights; None if neither is here.

    Only this disk is searched: reading a run should not start a download.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    for place in _slots(run, data):
        try:
            return TokenTexts(AutoTokenizer.from_pretrained(place, local_files_only=True))
        except (OSError, ValueError):
            continue
    return None


def _slots(run: RunEpisodes, data: Path) -> list[str]:
    published = [str(path) for path in sorted(run.directory.glob("weights/version-??????"), reverse=True)[:1]]
    try:
        return [resolve_model(run.config["model"]["name"], data), *published]
    except (KeyError, AssetError):
        return published
