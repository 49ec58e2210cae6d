"""What a few bytes may cost is bounded; what people send is not refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.policy.bodies.dear_fields import dear_fault

RANGE = {"type": "integer", "minimum": -(10**17), "maximum": 10**17}
SCHEMA = {"type": "object", "properties": {str(number): RANGE for number in range(100)}}
SMALL: dict[str, Any] = {"type": "object", "properties": {"answer": {"type": "string", "maxLength": 100}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


def as_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"messages": [{}], "n": 129}, "n: "),
        ({"messages": [{}], "n": "16384"}, "n: "),
        ({"messages": [{}], "n": 16384.0}, "n: "),
        ({"sampling_params": {"n": 129}}, "n: "),
        ({"prompt": [[1]] * 501, "n": 2}, "n: "),
        ({"prompt": ["a"] * 501, "n": 2}, "n: "),
        ({"messages": [[{"role": "user"}]] * 501, "n": 2}, "n: "),
        ({"prompt": "a", "vllm_xargs": dict.fromkeys(map(str, range(257)))}, "vllm_xargs"),
        ({"chat_request": {"vllm_xargs": dict.fromkeys(map(str, range(257)))}}, "vllm_xargs"),
        ({"prompt": "a", "bad_words": ["a b " * 20_000]}, "bad_words"),
        ({"sampling_params": {"bad_words": ["a b " * 20_000]}}, "bad_words"),
        ({"prompt": ["a"] * 100, "bad_words": ["a b " * 200]}, "bad_words"),
        ({"messages": [{}], "structured_outputs": {"regex": "a" * 70_000}}, "grammar|structured_outputs"),
        ({"sampling_params": {"structured_outputs": {"regex": "a" * 70_000}}}, "structured_outputs"),
        (
            {"messages": [{}], "structured_outputs": {"json": '{"enum":[' + "[]," * 30_000 + "1]}"}},
            "structured_outputs",
        ),
        ({"messages": [{}], "response_format": as_format(SCHEMA)}, "response_format"),
        ({"messages": [{}], "structured_outputs": {"json": json.dumps(SCHEMA)}}, "structured_outputs"),
        (
            {"messages": [{}], "structured_outputs": {"json": json.dumps(SCHEMA).replace("minimum", "m\\u0069nimum")}},
            "structured_outputs",
        ),
        ({"messages": [{}], "tools": [TOOL], "tool_choice": "required"}, "forced tools"),
        ({"input": "a", "text": {"format": as_format(SCHEMA)}}, "text"),
        ({"prompt": [[1]] * 500, "response_format": as_format({"description": "a" * 300})}, "times the prompts"),
        ({"prompt": [[1]] * 513}, "513 prompts"),
        ({"prompt": [[1]] * 500, "logit_bias": {str(number): 1 for number in range(7000)}}, "500 prompts"),
        ({"messages": [[{"role": "user"}]] * 490, "logit_bias": {str(number): 1 for number in range(7900)}}, "490"),
        ({"stream_state": {"prev_tokens": ["a" * 1_001]}}, "prev_tokens"),
        ({"messages": [{}], "structured_outputs": {"regex": "\ud800" * 70_000}}, "structured_outputs"),
    ],
)
def test_what_costs_much_is_refused_by_name(body: dict[str, Any], named: str) -> None:
    fault = dear_fault(body)
    assert fault is not None
    assert any(each in fault for each in named.split("|"))
    assert len(fault) < 300


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": [{"role": "user", "content": "a"}], "n": 128},
        {"prompt": ["a"] * 512, "n": 1, "temperature": 0, "stop": ["a", "b"], "logprobs": 5, "seed": 1},
        {"prompt": [[1] * 700] * 100, "n": 8, "logit_bias": {str(number): 1 for number in range(400)}},
        {"prompt": [1] * 5_000, "n": 64},
        {"messages": [{}], "response_format": as_format(SMALL), "bad_words": ["no"] * 128},
        {"messages": [[{"role": "user"}]] * 100, "response_format": as_format(SMALL)},
        {"messages": [{}], "tools": [TOOL] * 100, "tool_choice": "auto"},
        {"messages": [{}], "structured_outputs": {"json": "no JSON"}},
        {"messages": [{}], "structured_outputs": {"regex": "a" * 60_000}},
        {"n": "many", "bad_words": None, "vllm_xargs": 1, "sampling_params": [], "prompt": None, "stream_state": 1},
        {"n": float("nan"), "messages": {}, "stream_state": {"prev_tokens": 1}},
        {"n": float("inf"), "prompt": [], "tool_choice": {"type": "function"}},
        {"stream_state": {"prev_tokens": ["a" * 1_000, None]}},
        {"text": "a" * 100_000, "response_format": [1], "structured_outputs": "a"},
    ],
)
def test_what_people_send_and_what_vllm_refuses_by_itself_pass(body: dict[str, Any]) -> None:
    assert dear_fault(body) is None


@pytest.mark.parametrize(("depth", "refused"), [(300, False), (100_000, True)])
def test_deep_nesting_raises_nothing(depth: int, refused: bool) -> None:
    nested: Any = 1
    for _ in range(depth):
        nested = [nested]
    assert (dear_fault({"structured_outputs": {"json": nested}}) is not None) == refused
