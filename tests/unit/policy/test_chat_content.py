"""What a chat client shows of an answer is the answer, wherever the model wrote it."""

from __future__ import annotations

import pytest

from research.schemas import AnswerResponse, AnswerSeconds, AnswerUsage, Step
from services.policy.openai.format import content_of


@pytest.mark.parametrize(
    ("trace", "answer", "content"),
    [
        ([Step(kind="think", text="I know. <answer>\\boxed{Paris}</answer>")], "Paris", "Paris"),
        ([Step(kind="think", text="I know.")], None, ""),
        ([Step(kind="think", text="I know."), Step(kind="answer", text="\\boxed{Rome}")], "Rome", "Rome"),
        ([Step(kind="text", text="It is Rome.")], None, "It is Rome."),
    ],
    ids=["in thoughts that never closed", "none", "in its tags", "without tags"],
)
def test_the_content_is_the_answer(trace: list[Step], answer: str | None, content: str) -> None:
    told = AnswerResponse(
        question="Where?",
        answer=answer,
        stop_reason="answered",
        format_fault=None,
        trace=trace,
        passages=[],
        usage=AnswerUsage(prompt_tokens=5, searches=0, sampled_tokens=9, result_tokens=0),
        seconds=AnswerSeconds(total=1.0, generate=1.0, search=0.0),
        weight_versions=["1"],
    )
    assert content_of(told) == content
