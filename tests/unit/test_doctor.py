"""`data check`: one file per kind of defect, each named with its row; the fix; speed and memory."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from data_rows import CHAT, QUESTION, ROW, STUDENT, TRIPLE, png, write_jsonl
from PIL import Image

from prism_lite.data import doctor
from prism_lite.data.doctor import CheckRules, check, main_check
from prism_lite.data.doctor_fix import write_fixed
from prism_lite.data.formats import load_samples


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


GOOD = {"prompt": user(f"<image>{QUESTION}"), "images": ["a.png"], "answer": "3"}
TEXT = {"prompt": user("What is 1 + 2?"), "answer": "3"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(png(colour=(0, 0, 200)))
    (tmp_path / "cut.png").write_bytes(png(size=(300, 300))[:200])
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "none.png").write_bytes(b"")
    Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "long.png").write_bytes(png(size=(2010, 10)))
    (tmp_path / "large.png").write_bytes(png(size=(300, 400)))
    (tmp_path / "dot.png").write_bytes(png(size=(2, 2)))
    return tmp_path


# Rows that spoil a file of otherwise good ones: kind -> (row, stage).
PREFERENCE = {"prompt": user("?"), "chosen": TRIPLE, "rejected": STUDENT}
SFT = {"messages": [*CHAT, {"role": "assistant", "content": TRIPLE}], "images": ["a.png"]}


def sft(target: str) -> dict:
    return {**SFT, "messages": [*CHAT, {"role": "assistant", "content": target}]}


ROW_DEFECTS: dict[str, tuple[str, dict, dict]] = {
    # name: (kind, the bad row, a good row of the same format)
    "more marks than pictures": (
        "picture_count",
        {**GOOD, "prompt": user("<image><image>?")},
        GOOD,
    ),
    "fewer marks than pictures": (
        "picture_count",
        {**GOOD, "prompt": user("<image>?"), "images": ["a.png", "b.png"]},
        GOOD,
    ),
    "mark without picture": ("picture_count", {**GOOD, "images": []}, GOOD),
    "missing picture file": ("missing_picture", {**GOOD, "images": ["gone.png"]}, GOOD),
    "picture is a URL": ("url_picture", {**GOOD, "images": ["https://example.org/a.png"]}, GOOD),
    "picture is a number": ("picture_type", {**GOOD, "images": [7]}, GOOD),
    "picture dict without content": ("picture_type", {**GOOD, "images": [{"bytes": None}]}, GOOD),
    "picture reference empty": ("empty_picture", {**GOOD, "images": [""]}, GOOD),
    "broken base64": ("bad_base64", {**GOOD, "images": ["data:image/png;base64,@@@"]}, GOOD),
    "data URI without base64": ("bad_data_uri", {**GOOD, "images": ["data:image/png,abc"]}, GOOD),
    "path with a zero byte": ("bad_path", {**GOOD, "images": ["a\0.png"]}, GOOD),
    "endless path": ("bad_path", {**GOOD, "images": ["a?" * 600]}, GOOD),
    "picture is text": ("unreadable_picture", {**GOOD, "images": ["text.png"]}, GOOD),
    "picture file empty": ("unreadable_picture", {**GOOD, "images": ["none.png"]}, GOOD),
    "png cut off": ("unreadable_picture", {**GOOD, "images": ["cut.png"]}, GOOD),
    "jpeg cut off": ("unreadable_picture", {**GOOD, "images": ["cut.jpg"]}, GOOD),
    "embedded bytes are no picture": (
        "unreadable_picture",
        {**GOOD, "images": ["data:image/png;base64,aGVsbG8="]},
        GOOD,
    ),
    "aspect ratio": ("aspect_ratio", {**GOOD, "images": ["long.png"]}, GOOD),
    "oversized picture": ("oversized_picture", {**GOOD, "images": ["large.png"]}, GOOD),
    "tiny picture": ("tiny_picture", {**GOOD, "images": ["dot.png"]}, GOOD),
    "video": ("unsupported_media", {**GOOD, "videos": ["a.mp4"]}, GOOD),
    "audio": ("unsupported_media", {**GOOD, "audios": ["a.wav"]}, GOOD),
    "prompt too long": ("prompt_too_long", {**GOOD, "prompt": user("<image>" + "x " * 900)}, GOOD),
    "empty prompt": ("empty_prompt", {**GOOD, "prompt": user("<image>  ")}, GOOD),
    "no messages": ("empty_conversation", {**GOOD, "prompt": []}, GOOD),
    "message is text": ("message_type", {**GOOD, "prompt": ["How high?"]}, GOOD),
    "message without content": ("message_type", {**GOOD, "prompt": [{"role": "user"}]}, GOOD),
    "content is a number": (
        "message_type",
        {**GOOD, "prompt": [{"role": "user", "content": 5}]},
        GOOD,
    ),
    "unknown role": (
        "unknown_role",
        {**GOOD, "prompt": [{"role": "tool", "content": "?"}]},
        GOOD,
    ),
    "unknown part": (
        "unknown_part",
        {**GOOD, "prompt": [{"role": "user", "content": [{"type": "video"}]}]},
        GOOD,
    ),
    "two user turns": ("turn_order", {**GOOD, "prompt": user("<image>a") + user("b")}, GOOD),
    "late system turn": (
        "turn_order",
        {**TEXT, "prompt": [*user("a"), {"role": "system", "content": "b"}]},
        TEXT,
    ),
    "assistant first": (
        "turn_order",
        {**TEXT, "prompt": [{"role": "assistant", "content": "hi"}, *user("a")]},
        TEXT,
    ),
    "no user turn": (
        "no_user_turn",
        {**TEXT, "prompt": [{"role": "system", "content": "be brief"}]},
        TEXT,
    ),
    "empty answer": ("empty_answer", {**GOOD, "answer": "  "}, GOOD),
    "empty box": ("empty_answer", {**GOOD, "answer": "<answer></answer>"}, GOOD),
    "answer says none": ("unverifiable_answer", {**GOOD, "answer": "N/A"}, GOOD),
    "answer is an essay": ("unverifiable_answer", {**GOOD, "answer": "word " * 200}, GOOD),
    "answer is an object": ("answer_type", {**GOOD, "answer": {"value": 3}}, GOOD),
    "empty list of answers": ("answer_type", {**GOOD, "answer": []}, GOOD),
    "missing answer": ("missing_answer", {"prompt": user("Why?"), "images": []}, TEXT),
    "answer beyond the options": (
        "answer_not_in_choices",
        {"question": "Which?", "choices": ["cat", "dog"], "answer": "E"},
        {"question": "Which one?", "choices": ["cat", "dog"], "answer": "A"},
    ),
    "options are text": (
        "choices_type",
        {"question": "Which?", "choices": "cat", "answer": "A"},
        {"question": "Which one?", "choices": ["cat", "dog"], "answer": "A"},
    ),
    "demonstration is half a triple": (
        "malformed_demonstration",
        sft(TRIPLE.replace("</think>", "")),
        SFT,
    ),
    "demonstration is empty": ("empty_demonstration", sft("  "), SFT),
    "demonstration holds a mark": (
        "mark_in_completion",
        sft(TRIPLE.replace("It is", "<image> is")),
        SFT,
    ),
    "demonstration answers otherwise": ("wrong_demonstration", {**SFT, "answer": "4"}, SFT),
    "special token": ("special_token", sft(TRIPLE.replace("It is", "<|im_end|>")), SFT),
    "teacher with two answers": (
        "malformed_teacher",
        {**PREFERENCE, "chosen": TRIPLE + "<answer>3</answer>"},
        PREFERENCE,
    ),
    "teacher with an empty caption": (
        "malformed_teacher",
        {**PREFERENCE, "chosen": TRIPLE.replace("- a red bar", "")},
        PREFERENCE,
    ),
    "student malformed": (
        "malformed_student",
        {**PREFERENCE, "rejected": "<caption>x</caption>"},
        PREFERENCE,
    ),
    "teacher answers wrongly": ("wrong_teacher", {**PREFERENCE, "answer": "5"}, PREFERENCE),
    "teacher is the student": ("same_pair", {**PREFERENCE, "rejected": TRIPLE}, PREFERENCE),
    "pair without a chosen side": (
        "pair_incomplete",
        {"messages": user("?"), "rejected_response": STUDENT},
        PREFERENCE,
    ),
    "broken characters": ("broken_characters", {**TEXT, "prompt": user("Caf\ufffd?")}, TEXT),
    "row of another format": ("mixed_formats", {"query": "a", "response": "b"}, TEXT),
    "row of no format": ("mixed_formats", {"x": 1}, TEXT),
    "duplicate row": ("duplicate_row", TEXT, TEXT),
    "duplicate id": (
        "duplicate_id",
        {**TEXT, "id": "q1", "prompt": user("another")},
        {**TEXT, "id": "q1"},
    ),
    "too few objects": (
        "object_count",
        {**SFT, "objects": {"ref": []}, "messages": [*user("<image><ref-object>?"), CHAT[0]][:1]},
        SFT,
    ),
    "question is a number": (
        "text_type",
        {"query": 5, "answer": "b"},
        {"query": "a", "answer": "b"},
    ),
    "history is no list of pairs": (
        "message_type",
        {"instruction": "a", "output": "b", "history": [["a"]]},
        {"instruction": "a", "output": "b"},
    ),
    "message string is broken": (
        "broken_json",
        {"message": '[{"role"', "answer": "3"},
        {"message": json.dumps(user("?")), "answer": "3"},
    ),
}
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


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def _parquet_cut(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([TEXT]), path)
    path.write_bytes(path.read_bytes()[:-20])


GOOD_LINE = json.dumps(TEXT).encode()
# name: (kind, file name, row or 0 for the file, writer)
FILE_DEFECTS = {
    "file is missing": ("missing_file", "x.jsonl", 0, lambda path: None),
    "file is empty": ("empty_file", "x.jsonl", 0, _bytes(b"")),
    "file is white space": ("empty_file", "x.jsonl", 0, _bytes(b"\n \n")),
    "json is white space": ("empty_file", "x.json", 0, _bytes(b" \n")),
    "json array is empty": ("empty_file", "x.json", 0, _bytes(b"[]")),
    "json is an object": ("not_rows", "x.json", 0, _bytes(b'{"a": 1}')),
    "json is a number": ("not_rows", "x.json", 0, _bytes(b"5")),
    "json array is not closed": ("broken_json", "x.json", 0, _bytes(b"[" + GOOD_LINE)),
    "json without a comma": ("broken_json", "x.json", 0, _bytes(b"[" + GOOD_LINE * 2 + b"]")),
    "json is not UTF-8": ("broken_text", "x.json", 0, _bytes(b'[{"prompt": "\xff\xfe"}]')),
    "pickle": ("pickle", "x.pkl", 0, _bytes(pickle.dumps([TEXT]))),
    "torch file": ("pickle", "x.pt", 0, _bytes(b"PK\x03\x04")),
    "unknown file type": ("unknown_suffix", "x.docx", 0, _bytes(b"abc")),
    "no suffix": ("unknown_suffix", "rows", 0, _bytes(GOOD_LINE)),
    "folder without data": ("empty_folder", "folder", 0, lambda path: path.mkdir()),
    "unknown format": ("unknown_format", "x.jsonl", 0, _bytes(b'{"a": 1, "b": 2}')),
    "broken JSON line": (
        "broken_json",
        "x.jsonl",
        2,
        _bytes(GOOD_LINE + b"\n" + GOOD_LINE[:-9] + b"\n"),
    ),
    "line is not UTF-8": (
        "broken_text",
        "x.jsonl",
        2,
        _bytes(GOOD_LINE + b'\n{"prompt": "caf\xe9"}\n'),
    ),
    "line is a list": ("not_a_row", "x.jsonl", 2, _bytes(GOOD_LINE + b"\n[1, 2]\n")),
    "line nested too deeply": (
        "broken_json",
        "x.jsonl",
        2,
        _bytes(GOOD_LINE + b"\n" + b"[" * 200_000 + b"\n"),
    ),
    "no line is readable": ("no_readable_row", "x.jsonl", 0, _bytes(b"{\n{\n")),
    "csv without header names": ("bad_header", "x.csv", 0, _bytes(b"a,,b\n1,2,3\n")),
    "csv with a name twice": ("bad_header", "x.csv", 0, _bytes(b"a,a\n1,2\n")),
    "csv row with a cell too many": (
        "cell_count",
        "x.csv",
        2,
        _bytes(b"question,answer\nwhy,3\nhow,1,2\n"),
    ),
    "csv with an open quote": (
        "broken_csv",
        "x.csv",
        0,
        _bytes(b'question,answer\nwhy,3\n"how,4\n'),
    ),
    "parquet cut off": ("broken_table", "x.parquet", 0, _parquet_cut),
    "parquet is text": ("broken_table", "x.parquet", 0, _bytes(b"question,answer\n")),
    "arrow is text": ("broken_table", "x.arrow", 0, _bytes(b"question,answer\n" * 9)),
    "registry is broken": ("broken_json", "dataset_info.json", 0, _bytes(b"{")),
    "registry without file": ("bad_registry", "dataset_info.json", 0, _bytes(b'{"a": {}}')),
    "registry names no format": (
        "bad_registry",
        "dataset_info.json",
        0,
        _bytes(b'{"a": {"file_name": "x", "formatting": "xml"}}'),
    ),
}


@pytest.mark.parametrize("name", FILE_DEFECTS)
def test_each_file_defect_is_named(name, folder):
    kind, file_name, row, write = FILE_DEFECTS[name]
    path = folder / file_name
    write(path)
    report = check(path)
    assert dict(report.counts) == {kind: 1}, report.findings
    assert report.findings[0].row == row
    assert file_name in report.findings[0].message
    assert main_check(path) == 2


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
        assert main_check(path) == 0
        printed = capsys.readouterr().out
        assert "2 rows, 2 clean" in printed and "[answer] 3" in printed

    def test_counts_are_exact_and_messages_capped(self, folder, monkeypatch, capsys):
        monkeypatch.setattr(doctor, "MAX_KEPT_PER_KIND", 3)
        rows = [{**TEXT, "prompt": user(f"q{i}"), "answer": ""} for i in range(10)]
        path = write_jsonl(folder / "x.jsonl", [TEXT, *rows, {"a": 1}])
        report = check(path)
        assert dict(report.counts) == {"empty_answer": 10, "mixed_formats": 1}
        assert len(report.findings) == 4
        assert main_check(path, num_shown=2) == 2
        assert "... and 8 more" in capsys.readouterr().out

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

    def test_headers_alone_when_asked(self, folder):
        path = write_jsonl(folder / "x.jsonl", [{**GOOD, "images": ["cut.jpg"]}])
        assert not check(path).ok
        assert check(path, rules=CheckRules(decode_pictures=False)).ok

    def test_clean_samples_for_training(self, folder):
        path = write_jsonl(folder / "x.jsonl", [GOOD, {**GOOD, "answer": ""}, TEXT])
        with pytest.raises(ValueError, match=r"line 2: the answer is empty"):
            list(doctor.clean_samples(load_samples(path), CheckRules()))
        opened = load_samples(path, on_bad_row="skip")
        assert [s.id for s in doctor.clean_samples(opened, CheckRules())] == ["1", "3"]
        assert dict(opened.skipped) == {"empty_answer": 1}
        assert opened.skipped_messages == [
            "x.jsonl, line 2: the answer is empty; write it or drop the row."
        ]

    def test_training_refuses_what_the_check_names(self, folder):
        path = write_jsonl(folder / "x.jsonl", [GOOD, {**GOOD, "images": []}])
        with pytest.raises(ValueError, match=r"x\.jsonl, line 2: 1 <image> marks for 0 pictures"):
            list(load_samples(path))


class TestFix:
    def test_clean_rows_and_rejects(self, folder, capsys):
        bad = {**GOOD, "answer": ""}
        path = write_jsonl(folder / "x.jsonl", [GOOD, bad, {**GOOD, "answer": "4"}])
        with path.open("a") as stream:
            stream.write("{broken\n")
        out = folder / "clean.jsonl"
        assert main_check(path, fix=out) == 2
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
        path.write_text("[" + json.dumps(TEXT))
        with pytest.raises(ValueError, match="nothing was written"):
            write_fixed(load_samples(path), folder / "y.jsonl", rules=CheckRules())
        assert not list(folder.glob("y*"))


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
