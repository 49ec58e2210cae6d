"""A real browser for tests of pages: the system's Chromium, if there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
require_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: chromium)")


@contextmanager
def browser_page(url: str, width: int = 1000, height: int = 900) -> Iterator[Page]:
    """Open a page; what its script throws, or what its security policy stops, fails the test."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(180_000)  # milliseconds; a busy machine is no fault
            faults: list[str] = []
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("console", lambda message: faults.append(message.text) if "Security" in message.text else None)
            page.goto(url)
            yield page
            assert not faults
        finally:
            browser.close()
