"""Whether vLLM would take an item of a response's input, asked of vLLM for one item at a time."""

from __future__ import annotations

from pydantic import ValidationError
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

_NAMED = 3


def item_fault(item: object) -> str | None:
    """What is wrong with it; None if it is right, or if vLLM has words of its own for what is not."""
    try:
        ResponsesRequest.model_validate({"input": [item]})
    except ValidationError as error:
        if isinstance(item, dict):
            return _words(error)
        return 'it is no item, such as {"role": "user", "content": "…"}'
    except Exception:
        return None
    return None


def _words(error: ValidationError) -> str:
    """Of some forty forms that say what they miss, the one that misses least."""
    forms: dict[str, dict[str, str]] = {}
    for each in error.errors(include_url=False, include_context=False, include_input=False):
        form, *place = each["loc"][3:] or [""]  # after "input", the kind of list, and the number of the item
        if place and not str(place[0])[:1].isupper():  # that is the name of a form within a form
            forms.setdefault(str(form), {}).setdefault(str(place[0]), each["msg"])
    nearest = min(forms.values(), key=lambda wrong: ("type" in wrong, len(wrong)), default={"type": ""})
    if "type" in nearest:
        return "it has no form of an item: no item has this type with these fields"
    told = "; ".join(f"{name}: {message}" for name, message in list(nearest.items())[:_NAMED])
    return f"it has no form of an item; in the nearest {told}"
