"""constraints.txt names every package of the tested set, and requirements-cpu.txt has a hash of each."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]
_PART_OF_PYTHON_SETUPS = {"pip", "setuptools", "wheel"}


def versions(file: str) -> dict[str, str]:
    lines = (REPOSITORY / file).read_text(encoding="utf-8").splitlines()
    pairs = (line.split()[0].split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def closure(name: str, extras: frozenset[str], seen: set[str]) -> None:
    """Add all installed packages that `name[extras]` needs on this machine."""
    try:
        requirements = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return
    for text in requirements:
        needed = Requirement(text)
        contexts = [{"extra": extra} for extra in ("", *extras)]
        if needed.marker and not any(needed.marker.evaluate(context) for context in contexts):
            continue
        key = canonicalize_name(needed.name)
        if key == "prism-lite":
            closure("prism-lite", frozenset(needed.extras), seen)
        elif key not in seen:
            seen.add(key)
            closure(key, frozenset(needed.extras), seen)


def test_every_package_of_the_set_is_named():
    needed: set[str] = set()
    try:
        metadata.version("prism-lite")
    except metadata.PackageNotFoundError:
        pytest.skip("prism-lite is not installed: its requirements are not known")
    closure("prism-lite", frozenset({"dev"}), needed)
    assert len(needed) > 80
    missing = needed - versions("constraints.txt").keys() - _PART_OF_PYTHON_SETUPS
    assert not missing, missing


def test_each_has_a_hash_and_the_same_version():
    lines = (REPOSITORY / "requirements-cpu.txt").read_text(encoding="utf-8").splitlines()
    for line in lines[2:]:
        assert re.fullmatch(r"[\w.-]+==[\w.+]+ --hash=sha256:[0-9a-f]{64}", line), line
    locked = {name: v.partition("+")[0] for name, v in versions("requirements-cpu.txt").items()}
    assert locked == versions("constraints.txt")
