"""What the OpenAPI description shows can be sent, and is what comes back."""

from __future__ import annotations

from typing import Any

import pytest

from research.schemas import AnswerRequest, AnswerResponse, ErrorBody
from services.policy.answer.openapi_examples import ANSWER, REQUESTS, RESPONSES


@pytest.mark.parametrize("body", [example["value"] for example in REQUESTS.values()], ids=list(REQUESTS))
def test_requests_can_be_sent(body: dict[str, Any]) -> None:
    AnswerRequest.model_validate(body)


def test_the_answer_is_whole() -> None:
    assert AnswerResponse.model_validate(ANSWER, strict=True).model_dump() == ANSWER


def test_errors_have_the_one_shape() -> None:
    errors = {status: said for status, said in RESPONSES.items() if status != 200}
    assert set(errors) == {401, 413, 422, 424, 429, 503}
    for said in errors.values():
        ErrorBody.model_validate(said["content"]["application/json"]["example"])
