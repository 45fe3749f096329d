"""The journal: kills between any two writes, edited files, other settings, two processes."""

from __future__ import annotations

import dataclasses
import json

import pytest

from prism_lite.teach.journal import Journal, journal_path, read_finished, read_records
from prism_lite.teach.replies import Reply
from prism_lite.teach.settings import TeachSettings

SETTINGS = TeachSettings("m")
KEPT = Reply("t", "kept", "", 1, 2)


def write_some(out, num: int = 3):
    with Journal(out, SETTINGS) as journal:
        for i in range(num):
            journal.add_reply(f"k{i}", KEPT)
            journal.finish(f"k{i}", "taught", place=f"row {i}", row={"id": i})
        journal.add_reply("open", Reply("half", "malformed", "missing <think>"))
        journal.finish("bad", "malformed", place="row 8", reason="missing <think>")
        journal.finish("lost", "failed", place="row 9", reason="status 500", num_requests=3)


def rows_of(out):
    return [json.loads(line)["id"] for line in out.read_text().splitlines()]


def test_what_is_stored_is_read_again(tmp_path):
    out = tmp_path / "out.jsonl"
    write_some(out)
    with Journal(out, SETTINGS) as journal:
        assert journal.finished == {"k0", "k1", "k2", "bad"} == read_finished(journal_path(out))
        assert journal.replies("open") == [Reply("half", "malformed", "missing <think>")]
        assert journal.replies("k0") == [] and journal.replies("lost") == []
        journal.finish("open", "taught", place="row 7", row={"id": 7})
    assert rows_of(out) == [0, 1, 2, 7]


def test_a_kill_after_any_byte_loses_no_row(tmp_path):
    """Both files cut at every place that one sequence of writes can leave: all rows are there again."""
    whole = tmp_path / "whole.jsonl"
    write_some(whole)
    journal = journal_path(whole).read_bytes()
    rows = whole.read_bytes().splitlines(keepends=True)
    out = tmp_path / "out.jsonl"
    for num_bytes in range(len(journal) + 1):
        ends = [json.loads(x) for x in journal[:num_bytes].split(b"\n")[:-1] if b'"taught"' in x]
        for num_rows in {len(ends), max(0, len(ends) - 1)}:
            torn = (
                b"".join(rows[:num_rows]) + rows[num_rows][:4] if num_rows < 3 else b"".join(rows)
            )
            torn = torn if num_rows < len(ends) else b"".join(rows[:num_rows])
            out.write_bytes(torn)
            journal_path(out).write_bytes(journal[:num_bytes])
            with Journal(out, SETTINGS) as again:
                taught = {key for key in again.finished if key.startswith("k")}
            assert rows_of(out) == list(range(len(ends))) and len(taught) == len(ends)
            assert all(line.endswith(b"\n") for line in journal_path(out).open("rb"))


def test_files_that_are_not_continued(tmp_path):
    out = tmp_path / "out.jsonl"
    write_some(out)
    with pytest.raises(ValueError, match=r"'teacher', not 'both'.*demonstration: teacher\}'\.$"):
        Journal(out, dataclasses.replace(SETTINGS, field="both"))
    with pytest.raises(ValueError, match="was begun with num = 1, not 2"):
        Journal(out, TeachSettings("m", num=2))
    with (
        Journal(out, SETTINGS),
        pytest.raises(ValueError, match="another process is writing it"),
    ):
        Journal(out, SETTINGS)
    out.write_text(out.read_text() + '{"id": "by hand"}\n')
    with pytest.raises(ValueError, match="has 4 rows, and its journal says 3: it was edited"):
        Journal(out, SETTINGS)
    out.unlink()
    with pytest.raises(ValueError, match="has 0 rows, and its journal says 3"):
        Journal(out, SETTINGS)
    other = tmp_path / "other.jsonl"
    other.write_text("precious\n")
    with pytest.raises(ValueError, match="exists and has no journal"):
        Journal(other, SETTINGS)
    assert other.read_text() == "precious\n" and not journal_path(other).exists()
    journal_path(other).write_text("{}\nbroken\n{}\n")
    with pytest.raises(ValueError, match="line 2 is not a record"):
        list(read_records(journal_path(other)))
    with pytest.raises(ValueError, match="does not exist; create it"):
        Journal(tmp_path / "no" / "out.jsonl", SETTINGS)


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    with Journal(out, SETTINGS) as journal:
        before = journal_path(out).read_bytes()

        def full(descriptor):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises(OSError, match="No space"):
                journal.add_reply("a", KEPT)
        assert journal_path(out).read_bytes() == before
        journal.add_reply("b", KEPT)
    assert [r.get("key") for r in read_records(journal_path(out))] == [None, "b"]
