"""`data check`: one file per kind of defect, each named with its row; the fix; speed and memory."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from data_defects import ROW_DEFECTS
from data_defects_files import FILE_DEFECTS
from data_rows import GOOD, QUESTION, ROW, TEXT, TRIPLE, png, user, write_jsonl
from PIL import Image

from prism_lite.__main__ import main
from prism_lite.config import DataConfig
from prism_lite.data.checks import check as check_module
from prism_lite.data.checks.check import check
from prism_lite.data.checks.rules import CheckRules
from prism_lite.data.formats.base import Finding
from prism_lite.data.formats.load import load_samples
from prism_lite.data.stage_rows import read_file, rows_for


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(png(colour=(0, 0, 200)))
    (tmp_path / "cut.png").write_bytes(png(size=(300, 300))[:200])
    (tmp_path / "text.png").write_text("this is not a picture")
    (tmp_path / "none.png").write_bytes(b"")
    Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "long.png").write_bytes(png(size=(2010, 10)))
    (tmp_path / "large.png").write_bytes(png(size=(300, 400)))
    (tmp_path / "dot.png").write_bytes(png(size=(2, 2)))
    return tmp_path


RULES = CheckRules(
    max_pixels=100_000, max_prompt_tokens=500, num_tokens=lambda s: len(s.question.split())
)


@pytest.mark.parametrize("name", ROW_DEFECTS)
def test_each_row_defect_is_named_with_its_row(name, folder):
    kind, bad, good = ROW_DEFECTS[name]
    rules = RULES
    if kind == "missing_answer":
        rules = CheckRules(stage="rlvr")
    path = write_jsonl(folder / "rows.jsonl", [good, bad])
    report = check(path, rules=rules)
    assert not report.ok
    assert dict(report.counts) == {kind: 1}
    (finding,) = report.findings
    assert finding.row == 2
    assert finding.message.startswith("rows.jsonl, line 2: ")
    assert (report.num_rows, report.num_clean) == (2, 1)
    # Alone with its good row twice, the same file without the bad row is clean of that kind.
    assert kind not in check(write_jsonl(folder / "good.jsonl", [good]), rules=RULES).counts


@pytest.mark.parametrize("name", FILE_DEFECTS)
def test_each_file_defect_is_named(name, folder):
    kind, file_name, row, write = FILE_DEFECTS[name]
    path = folder / file_name
    write(path)
    report = check(path)
    assert dict(report.counts) == {kind: 1}, report.findings
    assert report.findings[0].row == row
    assert file_name in report.findings[0].message
    assert main(["data", "check", str(path)]) == 2


def test_enough_kinds():
    kinds = {kind for kind, *_ in [*ROW_DEFECTS.values(), *FILE_DEFECTS.values()]}
    assert len(ROW_DEFECTS) + len(FILE_DEFECTS) >= 80
    assert len(kinds) >= 40, sorted(kinds)


class TestReport:
    def test_clean_file(self, folder, capsys):
        path = write_jsonl(folder / "x.jsonl", [GOOD, {**GOOD, "answer": "4"}])
        report = check(path)
        assert report.ok and report.num_clean == 2 and report.convention == "prompt"
        assert f"[user] <image>{QUESTION}" in report.first_sample
        assert main(["data", "check", str(path)]) == 0
        printed = capsys.readouterr().out
        assert "2 rows, 2 clean" in printed and "[answer] 3" in printed

    def test_counts_are_exact_and_messages_capped(self, folder, monkeypatch, capsys):
        monkeypatch.setattr(check_module, "MAX_KEPT_PER_KIND", 3)
        rows = [{**TEXT, "prompt": user(f"q{i}"), "answer": ""} for i in range(10)]
        path = write_jsonl(folder / "x.jsonl", [TEXT, *rows, {"a": 1}])
        report = check(path)
        assert dict(report.counts) == {"empty_answer": 10, "mixed_formats": 1}
        assert len(report.findings) == 4
        assert main(["data", "check", str(path)]) == 2
        assert "... and 7 more" in capsys.readouterr().out

    def test_stage_demands_fields(self, folder):
        path = write_jsonl(folder / "x.jsonl", [TEXT])
        assert check(path, rules=CheckRules(stage="rlvr")).ok
        for stage, kind in (("sft", "missing_demonstration"), ("align", "missing_teacher")):
            assert dict(check(path, rules=CheckRules(stage=stage)).counts) == {kind: 1}

    def test_sft_stage_demands_the_triple(self, folder):
        path = write_jsonl(folder / "x.jsonl", [{"query": "a", "response": "plain"}])
        assert check(path).ok
        report = check(path, rules=CheckRules(stage="sft"))
        assert dict(report.counts) == {"malformed_demonstration": 1}

    def test_overlap_sees_content_not_paths(self, folder):
        (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
        train = write_jsonl(folder / "train.jsonl", [GOOD, {**GOOD, "images": ["b.png"]}])
        again = {**GOOD, "images": ["copy.png"], "prompt": user(f"<image>\n{QUESTION.lower()} ")}
        evaluation = write_jsonl(folder / "eval.jsonl", [again])
        report = check(train, eval_path=evaluation)
        assert dict(report.counts) == {"eval_overlap": 1} and report.findings[0].row == 1
        with pytest.raises(ValueError, match="does not exist"):
            check(train, eval_path=folder / "gone.jsonl")

    def test_duplicates_in_files_of_one_name(self, folder):
        for name in ("one", "two"):
            (folder / "parts" / name).mkdir(parents=True)
            write_jsonl(folder / "parts" / name / "x.jsonl", [TEXT])
        report = check(folder / "parts")
        assert dict(report.counts) == {"duplicate_row": 1}
        assert report.findings[0].file == str(folder / "parts" / "two" / "x.jsonl")

    def test_id_of_a_duplicate_row_counts_for_no_other(self, folder):
        other = {**TEXT, "prompt": user("What is 2 + 2?"), "answer": "4"}
        rows = [{**TEXT, "id": "a"}, {**TEXT, "id": "b"}, {**other, "id": "b"}]
        report = check(write_jsonl(folder / "x.jsonl", rows))
        assert dict(report.counts) == {"duplicate_row": 1}

    def test_headers_alone_when_asked(self, folder):
        path = write_jsonl(folder / "x.jsonl", [{**GOOD, "images": ["cut.jpg"]}])
        assert not check(path).ok
        assert check(path, rules=CheckRules(decode_pictures=False)).ok

    def test_clean_samples_for_training(self, folder):
        path = write_jsonl(folder / "x.jsonl", [GOOD, {**GOOD, "answer": ""}, TEXT])
        stored = read_file(DataConfig(), str(path))
        with pytest.raises(ValueError, match=r"line 2: the answer is empty"):
            rows_for(DataConfig(), stored, "rlvr")
        samples, skipped = rows_for(DataConfig(on_bad_row="skip"), stored, "rlvr")
        assert [s.id for s in samples] == ["1", "3"]
        message = "x.jsonl, line 2: the answer is empty; write it or drop the row."
        assert skipped == [Finding(str(path), 2, "empty_answer", message)]

    def test_training_refuses_what_the_check_names(self, folder):
        path = write_jsonl(folder / "x.jsonl", [GOOD, {**GOOD, "images": []}])
        with pytest.raises(ValueError, match=r"x\.jsonl, line 2: 1 <image> marks for 0 pictures"):
            list(load_samples(path))


def _many_rows(path: Path, num_rows: int) -> Path:
    with path.open("w") as stream:
        for i in range(num_rows):
            row = {
                "messages": [
                    {"role": "user", "content": f"What is {i} + 1? {'Think about it. ' * 8}"},
                    {"role": "assistant", "content": TRIPLE.replace("3", str(i + 1))},
                ],
                "answer": str(i + 1),
            }
            stream.write(json.dumps(row) + "\n")
    return path


def test_check_is_fast_enough(tmp_path):
    """100,000 rows in a minute is 600 us a row; twice that for a machine that others share."""
    path = _many_rows(tmp_path / "x.jsonl", 2000)
    started = time.perf_counter()
    assert check(path).ok
    per_row_s = (time.perf_counter() - started) / 2000
    assert per_row_s < 6e-4 * 2, f"{per_row_s * 1e6:.0f} us per row"


@pytest.mark.slow
def test_streaming_memory_is_flat(tmp_path):
    import tracemalloc

    path = _many_rows(tmp_path / "x.jsonl", 30_000)
    peaks = []
    for limit in (3_000, 30_000):
        tracemalloc.start()
        assert sum(1 for _ in load_samples(path, limit=limit)) == limit
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000, peaks


def test_row_of_the_formats_tests_is_clean(folder):
    assert check(write_jsonl(folder / "x.jsonl", [ROW])).ok
