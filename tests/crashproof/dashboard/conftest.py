"""A served folder of runs, and a browser that looks at it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from served_runs import Served, served

from crashproof.testing import FakeClock

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMIUM_FLAGS = (
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


@pytest.fixture
def serve(tmp_path: Path, clock: FakeClock) -> Iterator[Callable[..., Served]]:
    """Serve this test's folder of runs, or another, at the time of this test's clock."""
    from crashproof.dashboard.access import Access

    with ExitStack() as servers:
        yield lambda root=tmp_path, access=None, now=clock.now, **given: servers.enter_context(
            served(root, access or Access(), now, **given)
        )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One headless Chromium for all tests of a module: as long as it is driven, no other event loop can run here."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS), chromium_sandbox=False
        )
        yield chromium
        chromium.close()


@pytest.fixture
def look(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open an address as a person does; whatever goes wrong in the page fails the test."""
    complaints: list[str] = []
    allowed: list[str] = []

    with ExitStack() as contexts:

        def open_page(address: str, *, width: int = 1200, dark: bool = False, complains: str = "") -> Any:
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
            )
            contexts.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(20_000)
            allowed.append(complains)
            page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda request: _keep_foreign(request.url, address, complaints))
            page.goto(address)
            return page

        yield open_page
    assert [] == [each for each in complaints if not any(word and word in each for word in allowed)]


def _keep_foreign(url: str, address: str, complaints: list[str]) -> None:
    host = address.split("/")[2]
    if url.split("/")[2] != host and not url.startswith("data:"):
        complaints.append(f"asked another host: {url}")
