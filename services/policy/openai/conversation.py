"""Turns a chat into one question: the last message asks, earlier messages come before it as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from research.errors import ConfigurationError

_ROLES = {"system": "Instructions", "developer": "Instructions", "user": "User", "assistant": "Assistant"}


def question_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """The question to answer.

    A single message is asked as it is, which is what the agent is trained on. Earlier messages are put before it.

    Raises:
        ConfigurationError: the last message is not the user's or is blank, or a message holds more than text.
    """
    if not messages or messages[-1].get("role") != "user":
        raise ConfigurationError("messages: the last message must have the role `user`, because it is the question")
    texts = [_text(message, place) for place, message in enumerate(messages)]
    if not texts[-1]:
        raise ConfigurationError(f"messages.{len(messages) - 1}.content: it is blank")
    before = [
        f"{_ROLES[message['role']]}: {text}" for message, text in zip(messages[:-1], texts[:-1], strict=True) if text
    ]
    if not before:
        return texts[-1]
    history = "\n".join(before)
    return f"The conversation so far:\n{history}\n\nThe question: {texts[-1]}"


def _text(message: Mapping[str, Any], place: int) -> str:
    where = f"messages.{place}"
    if message.get("role") not in _ROLES:
        raise ConfigurationError(f"{where}.role: the agent reads {', '.join(_ROLES)}, not {message.get('role')!r}")
    content = message.get("content") or ""
    if isinstance(content, str):
        return content.strip()
    parts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content]
    if not all(isinstance(part, str) for part in parts):
        raise ConfigurationError(f"{where}.content: the agent reads text only")
    return "\n".join(part for part in parts if part).strip()
