"""Prompt texts, chosen by name or by path.

A file that contains `{question}` is a raw text for base models; any other file is the system message of a chat whose
user message is the bare question.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from research.errors import ConfigurationError

_DIRECTORY = Path(__file__).resolve().parent
_SLOT = "{question}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """The rules that are told to the model before a question."""

    name: str
    text: str

    @property
    def is_raw(self) -> bool:
        return _SLOT in self.text

    def fill(self, question: str) -> str:
        """The raw prompt for one question; only for raw prompts."""
        return self.text.replace(_SLOT, question)


def load_prompt(name: str) -> Prompt:
    """Load a prompt by the name of a file in this package, or by the path of a text file.

    Raises ConfigurationError that lists the known names.
    """
    path = Path(name) if name.endswith(".txt") else _DIRECTORY / f"{name}.txt"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in _DIRECTORY.glob("*.txt")))
        raise ConfigurationError(f"episode.prompt: there is no prompt {name!r}; known: {known}; or give a .txt file")
    return Prompt(name=name, text=path.read_text(encoding="utf-8").strip())
