"""Prompt forms: how a model writes a search, is shown passages, and answers. `form_named` knows them all."""

from __future__ import annotations

from research.errors import ConfigurationError
from research.forms.form import PromptForm
from research.forms.published import AUTOREFINE, R1_SEARCHER, SEARCH_R1
from research.forms.tags import TAGS, TAGS_OPEN, TAGS_PARALLEL
from research.forms.tool_calls import TOOL_CALLS, TOOL_CALLS_OPEN, TOOL_CALLS_PLAIN

_ALL: tuple[PromptForm, ...] = (
    TAGS,
    TAGS_OPEN,
    TAGS_PARALLEL,
    TOOL_CALLS,
    TOOL_CALLS_OPEN,
    TOOL_CALLS_PLAIN,
    SEARCH_R1,
    R1_SEARCHER,
    AUTOREFINE,
)
_FORMS = {form.name: form for form in _ALL}


def form_named(name: str) -> PromptForm:
    """Raises ConfigurationError listing the known names."""
    if name not in _FORMS:
        raise ConfigurationError(f"there is no prompt form {name!r}; known: {', '.join(sorted(_FORMS))}")
    return _FORMS[name]
