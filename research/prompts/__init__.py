"""Prompt texts, chosen by name or by path.

A file that contains `{question}` is a raw text for base models; any other file is the system message of a chat whose
user message is the bare question. A first line such as `# form: tool_calls` names the prompt form (`research.forms`);
without one, it is the tags. No model sees that line, but it belongs to the prompt: weights are served in the form that
they were trained in.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from research.errors import ConfigurationError
from research.forms import form_named
from research.forms.form import PromptForm
from research.forms.tags import TAGS

_DIRECTORY = Path(__file__).resolve().parent
_SLOT = "{question}"
_FORM = "# form:"
# What was meant as that line, or would be read as it once the white space before it is gone.
_LIKE_FORM = re.compile(r"[\s\ufeff]*+#[ \t]*+form[ \t]*+:", re.IGNORECASE)
# In a directory of weights: the prompt that they were trained with.
TRAINED_PROMPT = "prompt.txt"


@dataclass(frozen=True, slots=True)
class Prompt:
    """The rules that the model reads before a question, and the form in which it then writes."""

    name: str
    text: str
    form: PromptForm = TAGS

    @property
    def is_raw(self) -> bool:
        return _SLOT in self.text

    @property
    def source(self) -> str:
        """What a file of it holds, but for its last line feed."""
        return self.text if self.form is TAGS else f"{_FORM} {self.form.name}\n{self.text}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.source.encode()).hexdigest()

    def fill(self, question: str) -> str:
        """The prompt for one question; only for prompts with a place for it."""
        return self.text.replace(_SLOT, self.form.question(question))


def load_prompt(name: str) -> Prompt:
    """Load a prompt by the name of a file in this package, or by the path of a text file.

    Raises ConfigurationError listing the known names, of prompts or forms.
    """
    path = Path(name) if name.endswith(".txt") else _DIRECTORY / f"{name}.txt"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in _DIRECTORY.glob("*.txt")))
        raise ConfigurationError(f"episode.prompt: there is no prompt {name!r}; known: {known}; or give a .txt file")
    return _read(name, path)


def trained_prompt(checkpoint: Path) -> str | None:
    """SHA-256 of the prompt that a checkpoint was trained with; None if unknown."""
    file = checkpoint / TRAINED_PROMPT
    return _read(str(file), file).sha256 if file.is_file() else None


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


def _read(name: str, path: Path) -> Prompt:
    """White space around a text is no part of it in the form of tags; in others only a last line feed is none.

    Other projects' prompts end as they do.

    Where no form but the tags is named, the text alone is what goes with weights: it must read as the same again.
    """
    text = path.read_text(encoding="utf-8")
    form: PromptForm = TAGS
    if text.startswith(_FORM):
        first, _, text = text.partition("\n")
        try:
            form = form_named(first.removeprefix(_FORM).strip())
        except ConfigurationError as error:
            raise ConfigurationError(f"episode.prompt: {name}: {error}") from error
    if _LIKE_FORM.match(text):
        raise ConfigurationError(
            f"episode.prompt: {name}: a line like {_FORM!r} names the form only if it is the first, and written so, "
            "with nothing before it; mend it or take it out"
        )
    return Prompt(name, text.strip() if form is TAGS else text.removesuffix("\n"), form)
