"""`/answer`: lists, streams, limits; and clients that hang up, there and in chats."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import httpx
import pytest

from tests.support.agent_services import AGENT, QUESTION, Services, await_condition, user


def events_of(response: httpx.Response) -> list[tuple[str, Any]]:
    blocks = [block.splitlines() for block in response.read().decode().strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_answer_streams_what_happens(services: Services) -> None:
    with services.http() as http:
        whole = http.post("/answer", json={"question": QUESTION}).raise_for_status().json()
        with http.stream("POST", "/answer", json={"question": QUESTION, "stream": True}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            events = events_of(response)
    names = list(dict.fromkeys(name for name, _ in events))
    assert names[:4] == ["think", "search", "result", "answer"]
    assert events[-1][0] == "done"
    assert events[-1][1]["trace"] == whole["trace"]
    [found, *_] = [data for name, data in events if name == "result"]
    assert found["passages"][0]["title"] == "The Starry Night"
    assert found["query"] == next(step["text"] for step in whole["trace"] if step["kind"] == "search")


def test_answer_takes_several_questions_and_more_than_may_run_at_once(services: Services) -> None:
    questions = [f"Who wrote {title}?" for title in ("Hamlet", "Emma", "Ulysses", "Walden", "Dracula", "Candide")]
    with services.http() as http:
        answers = http.post("/answer", json={"questions": questions}).raise_for_status().json()["answers"]
        alone = http.post("/answer", json={"question": questions[2]}).raise_for_status().json()
    assert [answer["question"] for answer in answers] == questions
    # In a batch rounding differs; the first thought and search are far from any tie.
    assert answers[2]["trace"][:2] == alone["trace"][:2]
    assert len({answer["trace"][1]["text"] for answer in answers}) == len(questions)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "give either `question` or `questions`"),
        ({"question": "a", "questions": ["b"]}, "give either"),
        ({"questions": ["a"], "stream": True}, "stream: only one"),
        ({"questions": []}, "questions"),
        ({"question": "a", "strategy": "guess"}, "strategy"),
        ({"question": "a", "timeout": 1e6}, "timeout"),
    ],
)
def test_a_wrong_answer_request_is_explained(services: Services, body: dict[str, Any], named: str) -> None:
    with services.http() as http:
        response = http.post("/answer", json=body)
    assert response.status_code == 422
    assert named in response.json()["message"]


def test_time_runs_out_as_an_error(services: Services) -> None:
    with services.http() as http:
        response = http.post("/answer", json={"question": QUESTION, "timeout": 0.05})
        assert response.status_code == 503
        assert "no answer within 0.05 s" in response.json()["message"]
        assert http.post("/answer", json={"question": QUESTION, "timeout": 0.001, "stream": True}).status_code == 503
        # Enough for the first event, too little for the answer: how much that is depends on the machine and its load.
        for seconds in (0.25 * 1.4**step for step in range(16)):
            body = {"question": QUESTION, "timeout": seconds, "stream": True}
            with http.stream("POST", "/answer", json=body) as response:
                if response.status_code == 200:
                    assert events_of(response)[-1][0] == "error"
                    break
                assert response.status_code == 503
        else:
            pytest.fail("no stream ever began")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": AGENT, "messages": user(), "stream": True}),
        ("/v1/chat/completions", {"model": AGENT, "messages": user()}),
        ("/answer", {"question": QUESTION, "stream": True}),
        ("/answer", {"question": QUESTION}),
        ("/answer", {"questions": [QUESTION, "Who wrote Hamlet?"]}),
    ],
)
def test_who_hangs_up_is_not_answered_any_longer(services: Services, path: str, body: dict[str, Any]) -> None:
    # Told to write long, so that it would go on for many seconds.
    long = {"temperature": 2.0, "seed": 1}
    before = services.metric("research_policy_answers_total")
    with (
        services.http() as http,
        contextlib.suppress(httpx.ReadTimeout),
        http.stream("POST", path, json={**body, **long}, timeout=0.5) as response,
    ):
        next(response.iter_bytes())
    await_condition(
        "the engine goes on although the client has gone", lambda: services.metric("vllm:num_requests_running") == 0, 60
    )
    assert services.metric("research_policy_answers_total") == before
