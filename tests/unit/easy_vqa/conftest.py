"""The package `easy_vqa` with a handful of its pictures: the same getters, read from the fixture."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FIXTURE = Path(__file__).parents[2] / "fixtures" / "easy_vqa"


def questions(split: str) -> list[list]:
    return json.loads((FIXTURE / split / "questions.json").read_text())


@pytest.fixture
def package(monkeypatch) -> ModuleType:
    module = ModuleType("easy_vqa")

    def add(split: str) -> None:
        def get_questions():
            return tuple(map(list, zip(*questions(split), strict=True)))

        def get_image_paths():
            files = (FIXTURE / split / "images").glob("*.png")
            return {int(file.stem): str(file) for file in files}

        setattr(module, f"get_{split}_questions", get_questions)
        setattr(module, f"get_{split}_image_paths", get_image_paths)

    add("train")
    add("test")
    monkeypatch.setitem(sys.modules, "easy_vqa", module)
    return module
