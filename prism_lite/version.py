"""Versions: of this package, with the commit of its checkout, and of others that it cannot work beside."""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_OLDEST_TORCHAO = (0, 16)  # that PEFT 0.21 works beside


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


def torchao_trouble() -> str | None:
    """Return what to do about an installed torchao that PEFT refuses to work beside, or None."""
    installed = installed_version("torchao")
    if installed is None:
        return None
    if tuple(int(part) for part in re.findall(r"\d+", installed)[:2]) >= _OLDEST_TORCHAO:
        return None
    oldest = ".".join(map(str, _OLDEST_TORCHAO))
    return (
        f"torchao {installed} is older than {oldest}, and PEFT raises an ImportError beside it where "
        "weights are not quantised (export --merge, the model card's example): `pip uninstall torchao`, "
        f"which prism_lite does not use, or `pip install 'torchao>={oldest}'`."
    )
