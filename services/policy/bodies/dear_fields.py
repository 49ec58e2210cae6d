"""Fields of a few bytes that cost vLLM much: samples per prompt, grammars, words that are tokenized, copies per prompt.

vLLM reads them in the event loop, once per prompt. The figures in comments are of two cores of a Zen 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import orjson

# Requests within a request: of tokens to tokens, and of what is made into text again.
_WITHIN = ("sampling_params", "chat_request", "completion_request")
# 16,384 samples of one prompt took half a second and 18 MB; OpenAI takes 128, too.
_MOST_SAMPLES, _MOST_SEQUENCES = 128, 1_000
# A regular expression of 1 MB took 0.9 s and 450 MB, 1,000 ranges of integers 0.9 s.
_GRAMMARS = ("response_format", "structured_outputs", "text")
_MOST_GRAMMAR_BYTES, _MOST_RANGES = 65_536, 128
_RANGE = re.compile(rb"minimum|maximum|format|pattern|multipleof", re.IGNORECASE)
# 250 kB took 0.4 s; vLLM takes 128 words.
_MOST_BAD_WORD_BYTES = 16_000
# Each is tried as four kinds of value, in a request within a request twice.
_MOST_XARGS = 256
# Each is a request to the engine: 990 held the loop for 0.2 s. What stands beside them is copied for each: seven
# million values took 3.6 s.
MOST_PROMPTS, _MOST_COPIES = 512, 50_000
# What was sampled before is read again with each token.
_MOST_EARLIER_TOKEN = 1_000


def dear_fault(values: dict[str, Any]) -> str | None:
    """What costs too much in a body; None if nothing does. Values of wrong types are left to vLLM."""
    prompts, beside = _prompts(values)
    if prompts > MOST_PROMPTS:
        return f"it has {prompts} prompts: send {MOST_PROMPTS} at once"
    if prompts > 1 and prompts * _count(beside) > _MOST_COPIES:
        return f"its {prompts} prompts times the values beside them are more than {_MOST_COPIES}: send fewer at once"
    for request in (values, *(values[name] for name in _WITHIN if isinstance(values.get(name), dict))):
        if fault := _samples_fault(request, prompts) or _texts_fault(request, prompts):
            return fault
    state = values.get("stream_state")
    earlier = state.get("prev_tokens") if isinstance(state, dict) else None
    if isinstance(earlier, list) and any(isinstance(text, str) and len(text) > _MOST_EARLIER_TOKEN for text in earlier):
        return f"stream_state.prev_tokens: a token has more than {_MOST_EARLIER_TOKEN} characters"
    return None


def _prompts(values: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """How many prompts a body has, and what else."""
    for name in ("prompt", "messages"):
        given = values.get(name)
        several = (str, list) if name == "prompt" else (list,)
        if isinstance(given, list) and given and isinstance(given[0], several):
            return len(given), {key: value for key, value in values.items() if key != name}
    return 1, values


def _samples_fault(request: dict[str, Any], prompts: int) -> str | None:
    samples = _whole(request.get("n"))
    if samples > _MOST_SAMPLES:
        return f"n: it is more than {_MOST_SAMPLES}"
    if samples * prompts > _MOST_SEQUENCES:
        return f"n: times the prompts it is more than {_MOST_SEQUENCES}"
    if isinstance(extra := request.get("vllm_xargs"), dict) and len(extra) > _MOST_XARGS:
        return f"vllm_xargs: it has more than {_MOST_XARGS} fields"
    return None


def _texts_fault(request: dict[str, Any], prompts: int) -> str | None:
    words = request.get("bad_words")
    if words and prompts * len(_dumped(words)) > _MOST_BAD_WORD_BYTES:
        return f"bad_words: they, times the prompts, have more than {_MOST_BAD_WORD_BYTES} bytes"
    grammar = b"".join(map(_dumped, _grammars(request)))
    if len(grammar) > _MOST_GRAMMAR_BYTES:
        return f"{', '.join(_GRAMMARS)} and forced tools: they have more than {_MOST_GRAMMAR_BYTES} bytes"
    if prompts * len(grammar) > 2 * _MOST_GRAMMAR_BYTES or prompts * len(_RANGE.findall(grammar)) > _MOST_RANGES:
        too_many = f"{2 * _MOST_GRAMMAR_BYTES} bytes, or more than {_MOST_RANGES} ranges, formats and patterns"
        return f"{', '.join(_GRAMMARS)} and forced tools: times the prompts, they have more than {too_many}"
    return None


def _grammars(request: dict[str, Any]) -> Iterator[Any]:
    """What is made into a grammar; a schema that is given as a text is read, since escapes would hide its words."""
    for name in _GRAMMARS:
        given = request.get(name)
        if isinstance(given, dict):
            yield given
            if isinstance(schema := given.get("json"), str):
                with suppress(ValueError):
                    yield orjson.loads(schema)
    if request.get("tool_choice") not in (None, "none", "auto"):
        yield request.get("tools")


def _dumped(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:  # half of a pair, a number of more than 64 bits, or deep nesting
        with suppress(RecursionError):
            return repr(value).encode("utf-8", "backslashreplace")
        return bytes(_MOST_GRAMMAR_BYTES + 1)


def _whole(value: object) -> int:
    """As vLLM's validation reads it: texts and floats, too; 1 for what is no number."""
    try:
        return int(value) if isinstance(value, int | float | str) else 1
    except (ValueError, OverflowError):
        return 1


def _count(value: Any) -> int:
    """Of all fields and items, at any depth."""
    found, waiting = 0, [value]
    while waiting:
        each = waiting.pop()
        inside = each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        found += len(inside)
        waiting.extend(inside)
    return found
