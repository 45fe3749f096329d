"""Whatever a row or file holds, the loader gives a Sample or a named error, nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from data_conventions import CONVENTIONS
from data_rows import png
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prism_lite.data.checks.check import check
from prism_lite.data.checks.rules import CheckRules, find_defects
from prism_lite.data.formats.base import RawRow, RowError
from prism_lite.data.formats.build import to_sample
from prism_lite.data.formats.detect import detect
from prism_lite.types import Sample

NUM_EXAMPLES = int(os.environ.get("PRISM_FUZZ_ROWS", "300"))
TEXTS = st.one_of(
    st.sampled_from(
        ["<image>", "<image 2>", "[", '["a"]', '[{"role": 1}]', "data:,", "A", "file://"]
    ),
    st.text(max_size=12),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.binary(max_size=9)
)
KEYS = st.sampled_from(
    [
        "role",
        "from",
        "content",
        "value",
        "type",
        "text",
        "image",
        "image_url",
        "bytes",
        "path",
        "url",
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)
FIELDS = sorted({name for row, *_ in CONVENTIONS.values() for name in row} | {"objects", "history"})


@pytest.fixture(scope="module")
def picture_folder(tmp_path_factory) -> Path:
    """Return a folder with the one picture that the conventions' rows name."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "a.png").write_bytes(png())
    return folder


@st.composite
def spoiled_rows(draw):
    """Draw a good row of some convention; replace, remove or add some of its fields."""
    row = dict(CONVENTIONS[draw(st.sampled_from(sorted(CONVENTIONS)))][0])
    for name in draw(st.lists(st.sampled_from([*row, *FIELDS]), min_size=1, max_size=3)):
        if draw(st.booleans()):
            row[name] = draw(VALUES)
        else:
            row.pop(name, None)
    return row


@settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
@given(row=spoiled_rows())
def test_row_gives_a_sample_or_a_named_error(picture_folder, row):
    convention = detect(row)
    if convention is None:
        return
    try:
        sample = to_sample(row, convention, RawRow("x", 1, "x, row 1", row), [picture_folder])
    except RowError as error:
        assert str(error) and error.kind
        return
    assert isinstance(sample, Sample) and sample.turns
    for kind, message in find_defects(sample, CheckRules()):
        assert kind and message


@settings(
    max_examples=NUM_EXAMPLES // 3 + 1,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    database=None,
)
@given(
    st.sampled_from([".jsonl", ".json", ".csv", ".tsv"]),
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from([b"[", b"]", b",", b"{", b'"', b"\n", b"prompt,answer\n", b"\xff"]),
            st.just(json.dumps({"query": "a", "answer": "1"}).encode()),
        ),
        max_size=6,
    ),
)
def test_file_of_anything_gives_a_report(tmp_path: Path, suffix, pieces):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"".join(pieces))
    report = check(path)
    assert report.num_clean <= report.num_rows
    assert report.ok == (not report.findings)
