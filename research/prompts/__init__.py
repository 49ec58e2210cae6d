"""Prompt texts, chosen by name or by path.

A file that contains `{question}` is a raw text for base models; any other file is the system message of a chat whose
user message is the bare question.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from research.errors import ConfigurationError

_DIRECTORY = Path(__file__).resolve().parent
_SLOT = "{question}"
# In a directory of weights: the prompt that they were trained with.
TRAINED_PROMPT = "prompt.txt"


@dataclass(frozen=True, slots=True)
class Prompt:
    """The rules that the model reads before a question."""

    name: str
    text: str

    @property
    def is_raw(self) -> bool:
        return _SLOT in self.text

    @property
    def sha256(self) -> str:
        return _digest(self.text)

    def fill(self, question: str) -> str:
        """The raw prompt for one question; only for raw prompts."""
        return self.text.replace(_SLOT, question)


def load_prompt(name: str) -> Prompt:
    """Load a prompt by the name of a file in this package, or by the path of a text file.

    Raises ConfigurationError listing the known names.
    """
    path = Path(name) if name.endswith(".txt") else _DIRECTORY / f"{name}.txt"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in _DIRECTORY.glob("*.txt")))
        raise ConfigurationError(f"episode.prompt: there is no prompt {name!r}; known: {known}; or give a .txt file")
    return Prompt(name=name, text=path.read_text(encoding="utf-8").strip())


def trained_prompt(checkpoint: Path) -> str | None:
    """SHA-256 of the prompt that a checkpoint was trained with; None if unknown."""
    file = checkpoint / TRAINED_PROMPT
    return _digest(file.read_text(encoding="utf-8").strip()) if file.is_file() else None


def check_prompt(prompt: Prompt, trained: str | None, model: str, *, allow_mismatch: bool) -> None:
    """Refuse a prompt that the weights were not trained with, unless allowed: they would silently do worse.

    Args:
        trained: the result of `trained_prompt`; None lets any prompt pass.
        model: names the weights in the error.
        allow_mismatch: the mismatch is intended (`episode.allow_prompt_mismatch`).

    Raises:
        ConfigurationError: the prompts differ.
    """
    if trained is not None and trained != prompt.sha256 and not allow_mismatch:
        raise ConfigurationError(
            f"episode.prompt: {model} was trained with another prompt than {prompt.name!r}; use its {TRAINED_PROMPT} "
            "(episode.prompt=<checkpoint>/prompt.txt), or set episode.allow_prompt_mismatch=true"
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
