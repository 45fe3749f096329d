"""The version of the package and the commit of its checkout."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def installed_version(package: str) -> str | None:
    """Return the version of a package, or None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Return the commit of the checkout that this package is in; None for an installed one."""
    folder = Path(__file__).parent
    if not (folder.parent / ".git").exists():  # the commit of another repository says nothing
        return None
    command = ["git", "rev-parse", "HEAD"]
    try:
        return subprocess.check_output(
            command, cwd=folder, stderr=subprocess.DEVNULL, text=True
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def describe_version() -> str:
    """Return name and version, with the commit where it is known."""
    text = f"prism-lite {installed_version('prism-lite') or 'not installed'}"
    commit = git_commit()
    return f"{text} (commit {commit[:10]})" if commit else text
