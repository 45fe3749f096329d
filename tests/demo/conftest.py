"""The demo, served on the recorded sample and on a micro run, and a browser to visit it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.demo.screens import ARGUMENTS, find_chromium

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


@pytest.fixture(scope="session")
def sample_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the app as `prism-lite demo` does where nothing was trained."""
    from demo.app import launch
    from demo.runs.folder import open_home

    root = tmp_path_factory.mktemp("no-runs")
    page, url, _ = launch(open_home(None, root=root), is_open=False)
    yield url
    page.close(verbose=False)


@pytest.fixture(scope="session")
def live_home(micro_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the micro run in a folder of its own."""
    _, folder, _, _ = micro_run
    root = tmp_path_factory.mktemp("runs")
    shutil.copytree(folder, root / "micro")
    return root / "micro"


@pytest.fixture(scope="session")
def live_url(live_home: Path) -> Iterator[str]:
    """Serve the app on the micro run, whose model answers."""
    from demo.app import launch
    from demo.runs.folder import open_home

    page, url, _ = launch(open_home(str(live_home)), is_open=False)
    yield url
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Yield `visit(url, width=390)`: opens a page as a new visitor; external requests fail the test."""
    contexts, elsewhere = [], []

    def open_page(url: str, *, width: int = 1280, height: int = 860) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((url.partition("?")[0], "data:", "blob:"))
                else elsewhere.append(request.url)
            ),
        )
        page.goto(url)
        page.wait_for_selector("#badge .badge")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not elsewhere, f"requests to other hosts: {elsewhere[:3]}"
