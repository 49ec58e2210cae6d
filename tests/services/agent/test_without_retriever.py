"""The agent without its retriever; this module comes last, because it ends the retriever."""

from __future__ import annotations

import openai
import pytest

from tests.support.agent_services import KEY, QUESTION, Services, ask
from tests.support.browser import browser_page, require_browser


@pytest.fixture(scope="module", autouse=True)
def gone(services: Services) -> None:
    services.retriever.process.terminate()
    services.retriever.process.wait(timeout=30)


def test_clients_are_told(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="the retriever"):
        ask(client)
    with pytest.raises(openai.APIError, match="the retriever"):
        list(ask(client, stream=True))


def test_info_says_so(services: Services) -> None:
    with services.http() as http:
        info = http.get("/info").raise_for_status().json()
    assert info["retriever"]["status"] == "failed"
    assert "the retriever" in info["retriever"]["detail"]


@require_browser
def test_the_page_says_so(services: Services) -> None:
    with browser_page(services.policy.url) as page:
        page.get_by_text("Options").click()
        page.get_by_label("API key").fill(KEY)
        page.get_by_label("Question").fill(QUESTION)
        page.get_by_label("Question").press("Enter")
        alert = page.get_by_role("alert")
        alert.wait_for()
        assert "the retriever" in alert.inner_text()
        page.locator("#state .bad").wait_for()
