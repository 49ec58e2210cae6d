"""How traces are written in each prompt form that a model can be taught."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from research.errors import ConfigurationError
from research.forms.form import PromptForm


@dataclass(frozen=True, slots=True)
class Writing:
    """`search` makes a turn of a thought and a query, `answer` one of a thought and the final answer."""

    search: Callable[[str, str], str]
    answer: Callable[[str, str], str]


def writing_of(form: PromptForm) -> Writing:
    """Raises ConfigurationError for a form that is there for checkpoints of others."""
    if form.name not in _WRITINGS:
        raise ConfigurationError(
            f"episode.prompt: its form is {form.name}, and traces are written in {' or '.join(_WRITINGS)} only; choose "
            "such a prompt, or sft.enabled=false"
        )
    return _WRITINGS[form.name]


def _search_by_tags(thought: str, query: str) -> str:
    return f"<think>{thought}</think>\n<search>{query}</search>"


def _search_by_call(thought: str, query: str) -> str:
    call = json.dumps({"name": "search", "arguments": {"query": query}}, ensure_ascii=False)
    return f"<think>\n{thought}\n</think>\n\n<tool_call>\n{call}\n</tool_call>"


_BY_TAGS = Writing(
    _search_by_tags,
    lambda thought, answer: f"<think>{thought}</think>\n<answer>\\boxed{{{answer}}}</answer>",
)
_BY_CALLS = Writing(_search_by_call, lambda thought, answer: f"<think>\n{thought}\n</think>\n\n\\boxed{{{answer}}}")
_WRITINGS = {
    "tags": _BY_TAGS,
    "tags_open": _BY_TAGS,  # without a page: that one helps is what the model may find out
    "tags_parallel": _BY_TAGS,  # with one query per search: that several help is what the model may find out
    "tool_calls": _BY_CALLS,
    "tool_calls_open": _BY_CALLS,
    "tool_calls_plain": Writing(_search_by_call, lambda thought, answer: f"<think>\n{thought}\n</think>\n\n{answer}"),
}
