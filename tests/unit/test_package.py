"""The packages are complete: ruff, import-linter and the wheel see every module."""

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def test_every_folder_of_modules_is_a_package():
    modules = [
        p
        for name in ("prism_lite", "triton_kernels", "demo")
        for p in (REPOSITORY / name).rglob("*.py")
    ]
    assert modules and all((module.parent / "__init__.py").is_file() for module in modules)


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="not a git checkout")
def test_no_file_of_the_repository_matches_gitignore():
    """ruff and hatchling leave out what .gitignore names, also if it is committed."""
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.check_output(command, cwd=REPOSITORY, text=True) == ""
