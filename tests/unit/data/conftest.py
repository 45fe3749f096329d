"""Fixtures of the tests of data files."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_rows import png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the pictures a.png and b.png."""
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(png(colour=(0, 0, 200)))
    return tmp_path
