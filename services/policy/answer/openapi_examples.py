"""Examples of `/answer` for its OpenAPI description: a real exchange with the demo's model, and every error."""

from __future__ import annotations

from typing import Any

from research.schemas import ErrorBody

REQUESTS: dict[str, Any] = {
    "a question": {"value": {"question": "When was the painter of The Starry Night born?"}},
    "with limits": {
        "value": {
            "question": "When was the painter of The Starry Night born?",
            "top_k": 3,
            "max_searches": 4,
            "max_tokens": 1024,
            "timeout": 30,
        }
    },
    "sampled, repeatable": {
        "value": {"question": "Who painted The Starry Night?", "temperature": 1.0, "seed": 7},
    },
    "one search, then an answer": {"value": {"question": "Who painted The Starry Night?", "strategy": "naive-rag"}},
    "several": {"value": {"questions": ["Who painted The Starry Night?", "What is the capital of Peru?"]}},
    "as it happens": {"value": {"question": "Who painted The Starry Night?", "stream": True}},
}

# Two texts are shortened.
ANSWER: dict[str, Any] = {
    "question": "Who painted The Starry Night?",
    "strategy": "research",
    "adapter": None,
    "answer": "Vincent van Gogh",
    "stop_reason": "answered",
    "format_fault": None,
    "trace": [
        {"kind": "think", "text": "I need to find who painted The Starry Night.", "passages": []},
        {"kind": "search", "text": "The Starry Night", "passages": []},
        {
            "kind": "result",
            "text": '"The Starry Night"\n'
            "1889 painting by Vincent van Gogh. The Starry Night is an oil-on-canvas "
            "painting by the Dutch …",
            "passages": ["608"],
        },
        {"kind": "think", "text": "I found Vincent van Gogh.", "passages": []},
        {"kind": "answer", "text": "\\boxed{Vincent van Gogh}", "passages": []},
    ],
    "passages": [
        {
            "id": "608",
            "title": "The Starry Night",
            "text": "1889 painting by Vincent van Gogh. The Starry Night is an oil-on-canvas painting by the Dutch …",
        }
    ],
    "usage": {"prompt_tokens": 73, "sampled_tokens": 57, "result_tokens": 65, "searches": 1},
    "seconds": {"generate": 1.2197, "search": 0.0617, "total": 1.2836},
    "weight_versions": ["0"],
}

_STREAM = (
    'event: think\ndata: {"step": 0, "text": "I need to find"}\n\n'
    'event: search\ndata: {"step": 1, "text": "painter of The Starry Night"}\n\n'
    'event: result\ndata: {"query": "painter of The Starry Night", "passages": []}\n\n'
    'event: done\ndata: {"question": "Who painted The Starry Night?"}\n\n'
)

_ERRORS: dict[int, tuple[str, str, str]] = {
    401: (
        "the key is missing or invalid",
        "unauthorized",
        "send `Authorization: Bearer <the value of RESEARCH_API_KEY>`",
    ),
    413: ("the body is too large", "too_large", "the body is larger than 4000000 bytes"),
    422: (
        "a field is missing, invalid or beyond its limit",
        "invalid_request",
        "top_k: Input should be greater than or equal to 1",
    ),
    424: (
        "the retriever refuses until a person has changed something there; asking again is in vain",
        "service_refused",
        "the budget of web searches is spent",
    ),
    429: ("too many questions at once", "busy", "too many questions at once; try again soon"),
    503: ("the retriever is unavailable, or time ran out", "service_unavailable", "no answer within 30 s"),
}

RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the answer with its trace",
        "content": {"application/json": {"example": ANSWER}, "text/event-stream": {"example": _STREAM}},
    },
    **{
        status: {
            "model": ErrorBody,
            "description": description,
            "content": {"application/json": {"example": {"error": error, "message": message}}},
        }
        for status, (description, error, message) in _ERRORS.items()
    },
}
RESPONSES[429]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds to wait"}}
