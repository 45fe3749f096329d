"""Texts that are longer than what the policy may write: refused or named before anything is trained."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from prism_lite.stages.text_lengths import check_text_lengths
from prism_lite.types import Sample, Turn
from tests.micro import micro_recipe, quiet_console

LIMIT = 80
# A token for each character.
BACKBONE = SimpleNamespace(tokenize=lambda text: list(text))


def check(num_longer: int, *, field: str = "demonstration", has_begun: bool = False, **settings):
    """Check 20 texts, of which some have 100 characters and the others 60; return what is printed."""
    texts = ["x" * (100 if i < num_longer else 60) for i in range(20)]
    bare = [Sample(str(i), (Turn("user", "?"),)) for i in range(20)]
    rows = [replace(row, **{field: text}) for row, text in zip(bare, texts, strict=True)]
    task = SimpleNamespace(
        sft=rows if field == "demonstration" else (), align=rows if field == "teacher" else ()
    )
    config = micro_recipe(**({"sampling__max_completion_tokens": LIMIT} | settings))
    console = quiet_console()
    check_text_lengths(config, BACKBONE, task, console, has_begun=has_begun)  # type: ignore[arg-type]
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


@pytest.mark.parametrize("field", ["demonstration", "teacher"])
def test_mostly_longer_texts_are_refused_with_a_limit_that_holds_them(field):
    with pytest.raises(ValueError, match=r"11 of 20 .* = 80 \(the longest 100\)") as raised:
        check(11, field=field)
    given = re.search(r"max_completion_tokens=(\d+)", str(raised.value))
    assert given and 125 <= int(given[1]) < 125 + 16  # a quarter more than the longest
    assert check(20, field=field, sampling__max_completion_tokens=int(given[1])) == ""


def test_some_longer_ones_raise_an_alarm():
    assert check(4) == ""
    assert check(5).startswith("alarm long_texts: 5 of 20 demonstrations have more tokens")
    assert "alarm long_texts" in check(20, has_begun=True)


def test_stages_without_steps_read_none():
    assert check(20, sft__steps=0) == ""
    assert check(20, field="teacher", align__steps=0) == ""
