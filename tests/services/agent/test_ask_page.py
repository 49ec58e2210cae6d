"""The page to ask from, in a real browser."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import TimeoutError

from tests.support.agent_services import ADMIN_TOKEN, KEY, QUESTION, Services
from tests.support.browser import browser_page, require_browser

pytestmark = require_browser


@pytest.mark.parametrize("width", [1000, 380])
def test_a_question_is_answered_step_by_step(services: Services, width: int, tmp_path: Path) -> None:
    with browser_page(services.policy.url, width) as page:
        page.get_by_text("retriever ready").wait_for()
        assert "weights 0" in page.locator("#state").inner_text()
        page.get_by_text("Options").click()
        page.get_by_label("API key").fill(KEY)
        page.get_by_label("Question").fill(QUESTION)
        page.get_by_role("button", name="Ask").click()
        page.locator(".facts").wait_for(timeout=300_000)
        kinds = page.eval_on_selector_all(
            "article .step, article .passages", "shown => shown.map(each => each.className.replace('step ', ''))"
        )
        assert kinds[:3] == ["think", "search", "passages"]
        assert kinds[-1] == "answer"
        assert QUESTION in page.locator("article h2").inner_text()
        page.locator(".facts a").first.click()
        opened = page.locator("details.cited[open]")
        opened.wait_for()
        assert "oil-on-canvas" in opened.inner_text()
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow == 0, "the page is wider than the screen"
        page.screenshot(path=tmp_path / "ask.png", full_page=True)


def test_untrained_weights_are_said_to_be_and_can_be_trained_from_the_page(
    services: Services, launch: Any, tmp_path: Path
) -> None:
    with services.http() as http:
        answer = http.post("/answer", json={"question": QUESTION}).raise_for_status()
    assert answer.headers["Research-Notice"] == "untrained: it will not search"
    with browser_page(services.policy.url, 380) as page:
        page.get_by_text("untrained: it will not search").wait_for()
        assert "research up" in page.locator("#notice").inner_text()
        assert not page.get_by_label("admin token").is_visible()

    nobody = "http://127.0.0.1:9"
    launch(
        "trainer",
        f"paths.runs={tmp_path}",
        f"endpoints.retriever_url={nobody}",
        f'endpoints.policy_urls=["{nobody}"]',
        environment={"RESEARCH_ADMIN_TOKEN": ADMIN_TOKEN},
        port=services.trainer_port,
    )
    with browser_page(services.policy.url, 380) as page:
        page.get_by_text("on this machine").wait_for()
        assert "research run start" in page.locator("#notice").inner_text()
        page.screenshot(path=tmp_path / "untrained.png", full_page=True)
        page.get_by_label("admin token").fill("wrong")
        page.get_by_role("button", name="Train it").click()
        page.get_by_role("alert").get_by_text("RESEARCH_ADMIN_TOKEN").wait_for()
        page.get_by_label("admin token").fill(ADMIN_TOKEN)
        page.get_by_role("button", name="Train it").click()
        page.get_by_text("In training: ").wait_for()
        assert not page.get_by_label("admin token").is_visible()
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow == 0, "the page is wider than the screen"


def test_a_missing_key_is_asked_for(services: Services) -> None:
    with browser_page(services.policy.url) as page:
        page.get_by_label("Question").fill(QUESTION)
        page.get_by_label("Question").press("Enter")
        alert = page.get_by_role("alert")
        alert.wait_for()
        assert "RESEARCH_API_KEY" in alert.inner_text()
        assert page.get_by_label("API key").is_visible()


def test_an_answer_can_be_stopped(services: Services) -> None:
    with browser_page(services.policy.url) as page:
        page.get_by_text("Options").click()
        page.get_by_label("API key").fill(KEY)
        page.get_by_label("temperature").fill("2")
        page.get_by_label("Question").fill(QUESTION)
        for _ in range(5):  # what is drawn so hot may end before it can be stopped
            page.get_by_role("button", name="Ask").click()
            page.locator(".step").first.wait_for()
            with suppress(TimeoutError):
                page.get_by_role("button", name="Stop").click(timeout=5000)
                break
        page.get_by_text("stopped", exact=True).wait_for()
        assert page.get_by_role("button", name="Ask").is_visible()
