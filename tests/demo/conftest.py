"""The demo served for tests: on the recorded sample, and on one micro run with its models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


@pytest.fixture(scope="session")
def sample_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app as `prism-lite demo` shows it where nothing was trained."""
    from demo.app import launch
    from demo.folder import open_home

    root = tmp_path_factory.mktemp("no-runs")
    page, url, _ = launch(open_home(None, root=root), is_open=False)
    yield url
    page.close(verbose=False)


@pytest.fixture(scope="session")
def live_home(micro_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the micro run, for training beside it."""
    _, folder, _, _ = micro_run
    root = tmp_path_factory.mktemp("runs")
    shutil.copytree(folder, root / "micro")
    return root / "micro"


@pytest.fixture(scope="session")
def live_url(live_home: Path) -> Iterator[str]:
    """The app on the micro run; its model answers."""
    from demo.app import launch
    from demo.folder import open_home

    page, url, _ = launch(open_home(str(live_home)), is_open=False)
    yield url
    page.close(verbose=False)
