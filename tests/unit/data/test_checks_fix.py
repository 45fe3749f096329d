"""`--fix`: clean rows as they were, rejects with their reasons, nothing half written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_rows import GOOD, TEXT, png, write_jsonl

from prism_lite.__main__ import main
from prism_lite.data.checks.check import check
from prism_lite.data.checks.fix import write_fixed
from prism_lite.data.checks.rules import CheckRules
from prism_lite.data.formats.load import load_samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(png())
    return tmp_path


class TestFix:
    def test_clean_rows_and_rejects(self, folder, capsys):
        bad = {**GOOD, "answer": ""}
        path = write_jsonl(folder / "x.jsonl", [GOOD, bad, {**GOOD, "answer": "4"}])
        with path.open("a") as stream:
            stream.write("{broken\n")
        out = folder / "clean.jsonl"
        assert main(["data", "check", str(path), "--fix", str(out)]) == 2
        assert [json.loads(line) for line in out.read_text().splitlines()] == [
            GOOD,
            {**GOOD, "answer": "4"},
        ]
        rejects = [json.loads(s) for s in (folder / "clean.rejects.jsonl").read_text().splitlines()]
        assert [(r["place"], r["kinds"], r["row"]) for r in rejects] == [
            ("x.jsonl, line 2", ["empty_answer"], bad),
            ("x.jsonl, line 4", ["broken_json"], None),
        ]
        assert check(out).ok
        assert "2 clean rows" in capsys.readouterr().out

    def test_never_overwrites(self, folder):
        path = write_jsonl(folder / "x.jsonl", [GOOD])
        with pytest.raises(ValueError, match="exists; choose another"):
            write_fixed(load_samples(path), path, rules=CheckRules())
        with pytest.raises(ValueError, match=r"write \.jsonl, or \.parquet where"):
            write_fixed(load_samples(path), folder / "y.parquet", rules=CheckRules())

    def test_parquet_keeps_its_schema(self, folder):
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [
            {
                "problem": f"q{i}?",
                "answer": "" if i == 1 else str(i),
                "images": [{"bytes": png(), "path": ""}],
            }
            for i in range(3)
        ]
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, folder / "x.parquet")
        fixed = write_fixed(
            load_samples(folder / "x.parquet"), folder / "clean.parquet", rules=CheckRules()
        )
        assert (fixed.num_clean, fixed.num_rejected) == (2, 1)
        written = pq.read_table(folder / "clean.parquet")
        assert written.schema.equals(table.schema) and written.to_pylist() == [rows[0], rows[2]]
        as_lines = write_fixed(
            load_samples(folder / "x.parquet"), folder / "lines.jsonl", rules=CheckRules()
        )
        samples = list(load_samples(as_lines.clean))
        assert [sample.answer for sample in samples] == ["0", "2"]
        assert samples[0].pictures[0].open().size == (40, 30)

    def test_other_folder_gets_a_note(self, folder):
        path = write_jsonl(folder / "x.jsonl", [GOOD])
        fixed = write_fixed(load_samples(path), folder / "deep" / "y.jsonl", rules=CheckRules())
        assert str(folder.resolve()) in fixed.note
        assert len(list(load_samples(fixed.clean, image_root=str(folder)))) == 1

    def test_source_that_breaks_off_writes_nothing(self, folder):
        path = folder / "x.json"
        path.write_text(f"[{json.dumps(TEXT)}, {json.dumps(GOOD)}")
        with pytest.raises(ValueError, match="nothing was written"):
            write_fixed(load_samples(path), folder / "y.jsonl", rules=CheckRules())
        assert not list(folder.glob("y*"))
