"""Files that users have: each row of the field table, and other instances of its kinds."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import pytest
from data_rows import STUDENT, TRIPLE, png, write_jsonl

from prism_lite.config import DataConfig
from prism_lite.data.checks.check import Report, check
from prism_lite.data.checks.rules import CheckRules
from prism_lite.data.formats.base import FileError
from prism_lite.data.formats.load import load_samples
from prism_lite.data.stage_rows import read_file, rows_for
from prism_lite.types import Sample

FIELD = Path(__file__).parents[2] / "fixtures" / "field"
CHOICES = ["cat", "dog"]
LISTED = "Which one?\nA. cat\nB. dog"


def field(name: str) -> list[Sample]:
    return list(load_samples(FIELD / name))


def read(folder: Path, *rows: dict[str, Any]) -> list[Sample]:
    return list(load_samples(write_jsonl(folder / "x.jsonl", list(rows))))


def checked(folder: Path, *rows: dict[str, Any], **options: Any) -> Report:
    return check(write_jsonl(folder / "x.jsonl", list(rows)), **options)


class TestPictures:
    @pytest.mark.parametrize(
        ("name", "question"),
        [
            ("imgcol_img_path.jsonl", "<image>How many?"),
            ("15_qwenvl1_img_tag.jsonl", "<image>What is it?"),
            ("video_r1_image_rows.json", "<image>How many points (0)?\nA. one\nB. two"),
        ],
    )
    def test_field_files(self, name, question):
        sample = field(name)[0]
        assert sample.question == question
        assert [p.source for p in sample.pictures] == [FIELD / "images" / "p0.png"]

    @pytest.mark.parametrize(
        "name",
        [
            "image",
            "images",
            "img",
            "imgs",
            "picture",
            "pictures",
            "pic",
            "photo",
            "photos",
            "figure",
            "figures",
            "path",
            "file_name",
            "filename",
            "image_path",
            "image_paths",
            "img_path",
            "imgPath",
            "image_url",
            "image_urls",
            "Image",
            "imageFile",
            "image_file",
            "image_bytes",
            "image_base64",
            "picture_path",
            "screenshot",
            "file_path",
            "filepath",
            "url",
            "image_1",
            "question_image",
            "image1",
            "decoded_image",
        ],
    )
    @pytest.mark.parametrize("listed", [False, True])
    def test_ordinary_names(self, folder, name, listed):
        value: Any = "a.png"
        if "base64" in name or "bytes" in name:
            value = base64.b64encode(png()).decode()
        row = {"question": "How many?", "answer": "3", name: [value] if listed else value}
        (sample,) = read(folder, row)
        assert len(sample.pictures) == 1 and sample.question == "<image>How many?"

    @pytest.mark.parametrize(
        "value",
        [
            "a.png",
            "missing/x.jpg",
            base64.b64encode(png()).decode(),
            f"data:image/png;base64,{base64.b64encode(png()).decode()}",
            {"bytes": base64.b64encode(png()).decode(), "path": None},
            {"path": "a.png"},
            {"inner": {"deep": ["a.png"]}},
            '["a.png"]',
            "https://example.org/x.png",
        ],
    )
    def test_picture_under_any_other_name_is_a_defect(self, folder, value):
        report = checked(folder, {"question": "How many?", "answer": "3", "zzz": value})
        assert dict(report.counts) == {"unread_picture": 1}
        assert "column zzz holds a picture" in report.findings[0].message

    def test_bytes_in_a_table(self, folder):
        import pyarrow as pa
        import pyarrow.parquet as pq

        for value in (png(), {"bytes": png(), "path": None}, [{"bytes": png(), "path": "a"}]):
            rows = [{"question": "How many?", "answer": "3", "zzz": value}]
            pq.write_table(pa.Table.from_pylist(rows), folder / "x.parquet")
            assert dict(check(folder / "x.parquet").counts) == {"unread_picture": 1}

    def test_second_picture_is_not_lost(self, folder):
        row = {"question": "How many?", "answer": "3", "image": "a.png"}
        assert dict(checked(folder, row | {"depth": "b.png"}).counts) == {"unread_picture": 1}
        for same in ({"image_path": "./a.png"}, {"source": "a.png"}, {"name": "elsewhere/a.png"}):
            assert checked(folder, row | same).ok
        (sample,) = read(folder, row | {"image_2": "b.png"})
        assert [Path(p.id).name for p in sample.pictures] == ["a.png", "b.png"]

    def test_embedded_pictures_come_before_paths(self, folder):
        row = {"question": "How many?", "answer": "3", "path": "old/1.png"}
        (sample,) = read(folder, row | {"image": {"base64": base64.b64encode(png()).decode()}})
        assert isinstance(sample.pictures[0].source, bytes)

    @pytest.mark.parametrize(
        "mark", ["<image1>", "<image 1>", "<image_1>", "<Image-1>", "<|image_1|>"]
    )
    def test_numbered_marks(self, folder, mark):
        second = mark.replace("1", "2")
        row = {"problem": f"Is {second} like {mark}?", "answer": "no", "images": ["a.png", "b.png"]}
        (sample,) = read(folder, row)
        assert sample.question == "Is <image> like <image>?"
        assert [Path(p.id).name for p in sample.pictures] == ["b.png", "a.png"]

    def test_numbered_marks_of_the_field(self):
        assert field("24_numbered_mark_nospace.jsonl")[0].question == "<image>How many in <image>?"
        assert field("mathvision.parquet")[0].question == (
            "How many? (0) <image>\nOptions: A, B, C, D, E"
        )

    @pytest.mark.parametrize(
        "text",
        [
            "<img>a.png</img>\nHow?",
            "Picture 1: <img>a.png</img>\nHow?",
            '<img src="a.png">How?',
            "![](a.png)How?",
        ],
    )
    def test_pictures_named_in_the_text(self, folder, text):
        for row in (
            {"question": text, "answer": "3"},
            {
                "messages": [
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": "3"},
                ]
            },
        ):
            (sample,) = read(folder, row)
            assert len(sample.pictures) == 1 and sample.question.startswith("<image>")


class TestOptions:
    @pytest.mark.parametrize("prompt", ["question", "problem", "prompt", "query", "Question"])
    @pytest.mark.parametrize(
        "options",
        [
            {"choices": CHOICES},
            {"options": CHOICES},
            {"Options": CHOICES},
            {"candidates": CHOICES},
            {"answer_choices": CHOICES},
            {"options": "['cat', 'dog']"},
            {"options": '["cat", "dog"]'},
            {"options": "A. cat\nB. dog"},
            {"options": {"A": "cat", "B": "dog"}},
            {"choices": {"text": CHOICES, "label": ["A", "B"]}},
            {"choices": [{"label": "A", "text": "cat"}, {"label": "B", "text": "dog"}]},
            {"A": "cat", "B": "dog", "C": None},
            {"option_a": "cat", "option_b": "dog"},
            {"optionA": "cat", "optionB": "dog"},
            {"option_1": "cat", "option_2": "dog"},
            {"opa": "cat", "opb": "dog"},
            {"choice0": "cat", "choice1": "dog"},
        ],
    )
    def test_any_name_and_form(self, folder, prompt, options):
        (sample,) = read(folder, {prompt: "Which one?", **options, "answer": "B"})
        assert sample.choices == ("cat", "dog")
        assert (sample.question, sample.answer) == (LISTED, "B")

    def test_field_files(self):
        assert [s.choices for s in field("67_choices_python_string.jsonl")] == [
            ("cat", "dog"),
            ("cat's", "dog"),
        ]
        assert [s.question for s in field("65_problem_choices.jsonl")] == [
            LISTED,
            LISTED.replace("one", "one is it"),
        ]

    def test_options_inside_the_question_are_no_reason_to_leave_them_out(self, folder):
        row = {"question": "Is it a cat or a dog?", "choices": CHOICES, "answer": "B"}
        assert read(folder, row)[0].question.endswith("?\nA. cat\nB. dog")
        for listed in (
            "Which?\n(A) cat (B) dog",
            "Which?\nA. cat\nB. dog",
            "Which?\nA: cat, B: dog",
        ):
            row = {"question": listed, "choices": CHOICES, "answer": "B"}
            assert read(folder, row)[0].question == listed

    def test_options_of_conversations(self, folder):
        row = {
            "prompt": [{"role": "user", "content": "Which one?"}],
            "choices": CHOICES,
            "answer": "A",
        }
        assert read(folder, row)[0].question == LISTED

    @pytest.mark.parametrize("answer", ["B", "dog", 1])
    @pytest.mark.parametrize("options", [CHOICES, {"A": "cat", "B": "dog"}, "['cat', 'dog']"])
    def test_options_under_any_other_name_are_a_defect(self, folder, options, answer):
        report = checked(folder, {"question": "Which one?", "zzz": options, "answer": answer})
        assert dict(report.counts) == {"unread_choices": 1}

    def test_missing_option_column_is_a_defect(self, folder):
        row = {"question": "Which one?", "A": "cat", "C": "cow", "D": "ox", "answer": "D"}
        assert not checked(folder, row).ok

    def test_lists_that_are_no_options(self, folder):
        row = {"question": "How many?", "tags": ["math", "easy"], "answer": 1}
        assert checked(folder, row).ok

    def test_joined_texts_of_numpy_are_refused(self, folder):
        row = {"question": "Which one?", "options": "['cat' 'dog']", "answer": "B"}
        assert dict(checked(folder, row).counts) == {"choices_type": 1}


class TestGold:
    def test_field_files(self):
        assert field("64_solution_long_answer_short.jsonl")[0].answer == "45"
        assert field("62_gsm_style.jsonl")[0].answer == "7"
        (open_question,) = field("a5_mmmu_open.jsonl")
        assert (open_question.answer, open_question.accepted) == ("3", ("3.0",))
        science = field("scienceqa.parquet")
        assert [s.answer for s in science[:3]] == ["A", "1", "B"]
        assert science[1].columns["hint"] == "Look." and "lecture" in science[0].columns
        assert [s.answer for s in field("aokvqa.parquet")] == ["C", "C"]
        (first, *_) = field("docvqa.parquet")
        assert (first.answer, first.accepted) == ("1/8/93", ("January 8, 1993",))

    @pytest.mark.parametrize(
        ("columns", "gold"),
        [
            ({"answer": "45", "solution": "Because of the sum we get it."}, "45"),
            ({"answer": "Because of the sum.", "ground_truth": "45"}, "45"),
            ({"answer": "A long text of reasons.", "solution": "<answer>45</answer>"}, "45"),
            ({"answer": "", "solution": "45"}, "45"),
            ({"answer": None, "solution": "45"}, "45"),
            ({"answer": "It is 40+5=<<40+5=45>>45.\n#### 45"}, "45"),
            ({"solution": "We add them.\nThe final answer is: 45"}, "45"),
            ({"solution": "We add them. Answer: $45$"}, "45"),
            ({"answer": "['45', '45.0']"}, "45"),
            ({"answers": ["45", "45.0"]}, "45"),
            ({"answers": [{"answer": "45"}, {"answer": "45"}]}, "45"),
            ({"answers": {"text": ["45"], "answer_start": [0]}}, "45"),
            ({"gold": "45"}, "45"),
            ({"correctAnswer": "45"}, "45"),
            ({"label": 45}, "45"),
            ({"any": {"style": "rule", "ground_truth": "45"}, "answer": "0"}, "45"),
        ],
    )
    def test_which_column_and_what_of_it(self, folder, columns, gold):
        (sample,) = read(folder, {"question": "How many?", **columns})
        assert sample.answer == gold and sample.demonstration is None

    @pytest.mark.parametrize(
        ("columns", "gold"),
        [
            ({"answer": 1}, "B"),
            ({"label": 0}, "A"),
            ({"answer_idx": 1}, "B"),
            ({"correct_choice_idx": 0, "direct_answers": ["cow"]}, "A"),
            ({"answer": 1.0}, "B"),
            ({"answer": "dog"}, "dog"),
            ({"answer": "dog", "answer_idx": "B"}, "dog"),
            ({"answer": ["A", "B"]}, "A, B"),
        ],
    )
    def test_index_of_an_option(self, folder, columns, gold):
        (sample,) = read(folder, {"question": "Which one?", "choices": CHOICES, **columns})
        assert sample.answer == gold

    @pytest.mark.parametrize(
        ("choices", "columns", "kind"),
        [
            (CHOICES, {"answer": 2}, "answer_not_in_choices"),
            (CHOICES, {"answer_idx": 2}, "answer_not_in_choices"),
            (CHOICES, {"answer": "0"}, "answer_not_in_choices"),
            (["2", "0", "1"], {"answer": 1}, "ambiguous_answer"),
            (CHOICES, {"answer": None}, "missing_answer"),
        ],
    )
    def test_an_index_that_cannot_be_told_is_a_defect(self, folder, choices, columns, kind):
        row = {"question": "Which one?", "choices": choices, **columns}
        assert dict(checked(folder, row).counts) == {kind: 1}

    def test_missing_answer_by_row(self, folder):
        report = check(FIELD / "83_int_answer.parquet")
        assert dict(report.counts) == {"missing_answer": 1} and report.findings[0].row == 2
        rows = [{"problem": "a?", "answer": None}, {"problem": "b?", "answer": 3}]
        report = checked(folder, *rows)
        assert dict(report.counts) == {"missing_answer": 1} and report.findings[0].row == 1

    @pytest.mark.parametrize("name", ["text", "content", "target"])
    def test_a_document_is_not_a_demonstration(self, folder, name):
        assert field("91_ocr_text_column.jsonl")[0].demonstration is None
        row = {"question": "What is the total?", "answer": "12", name: "INVOICE total 12"}
        report = checked(folder, row)
        assert report.ok and f"not used: {name}" in report.notes
        assert read(folder, row)[0].demonstration is None

    def test_own_column_names(self, folder):
        row = {"prompt": "How high?", "images": ["a.png"], "answer": "3"}
        row |= {"demonstration": TRIPLE, "teacher": TRIPLE, "student": STUDENT}
        (sample,) = read(folder, row)
        assert (sample.demonstration, sample.teacher, sample.student) == (TRIPLE, TRIPLE, STUDENT)

    def test_unknown_format_proposes_the_columns_of_the_file(self, folder):
        row = {"frage": "Wie hoch ist er?", "bild": "a.png", "loesung": "3", "nr": 7}
        with pytest.raises(FileError, match=r"\{prompt: frage, images: bild, answer: loesung\}"):
            read(folder, row)


class TestStages:
    @pytest.mark.parametrize(
        "name", ["swift_6228.jsonl", "vlm_r1.jsonl", "r1_cold_answer_tags.json"]
    )
    def test_rl_rows_by_their_answer(self, name):
        data = DataConfig(on_bad_row="skip")
        stored = read_file(data, str(FIELD / name))
        samples, _ = rows_for(data, stored, "rlvr")
        assert len(samples) == 2 and all(sample.answer for sample in samples)
        assert check(FIELD / name, limit=2).ok
        assert check(FIELD / name, limit=2, rules=CheckRules(stage="rlvr")).ok

    def test_demonstration_without_caption_says_how_to_continue(self):
        report = check(FIELD / "r1_cold_answer_tags.json", rules=CheckRules(stage="sft"), limit=2)
        assert dict(report.counts) == {"malformed_demonstration": 2}
        assert "missing <caption>. Train without SFT (sft.steps=0)" in report.findings[0].message

    def test_bare_answers_are_not_read_by_sft(self, folder):
        rows = [
            {"query": "a?", "response": TRIPLE},
            {"query": "b?", "response": "<answer>3</answer>"},
        ]
        data = DataConfig()
        stored = read_file(data, str(write_jsonl(folder / "x.jsonl", rows)))
        assert [s.row for s in rows_for(data, stored, "sft")[0]] == [1]
        assert [s.row for s in rows_for(data, stored, "rlvr")[0]] == [1, 2]

    def test_each_stage_checks_what_it_reads(self, folder):
        row = {"prompt": "How?", "answer": "3", "demonstration": TRIPLE, "teacher": "<caption>a"}
        data = DataConfig()
        stored = read_file(data, str(write_jsonl(folder / "x.jsonl", [row])))
        for stage in ("sft", "rlvr", "eval"):
            assert len(rows_for(data, stored, stage)[0]) == 1
        with pytest.raises(ValueError, match="the teacher is not caption, think, answer"):
            rows_for(data, stored, "align")

    def test_llava_cot(self):
        sample = next(iter(load_samples(FIELD / "llava_cot.jsonl")))
        assert sample.answer == "0"
        assert sample.demonstration == (
            "<caption>A picture with a number.</caption>\n<think>I will look.\nThe number is 0.</think>\n"
            "<answer>0</answer>"
        )

    def test_a_row_that_no_stage_can_use(self, folder):
        report = checked(folder, {"query": "Describe it.", "response": "A long\nplain text."})
        assert dict(report.counts) == {"malformed_demonstration": 1}


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "number"),
        [("40_jsonl_named.json", 2), ("41_array_named.jsonl", 2), ("47.jsonl.gz", 2)],
    )
    def test_field_files(self, name, number):
        assert len(field(name)) == number

    @pytest.mark.parametrize("suffix", [".json", ".jsonl", ".ndjson"])
    @pytest.mark.parametrize("compress", [None, gzip.compress, bz2.compress, lzma.compress])
    @pytest.mark.parametrize("form", ["lines", "array", "indented", "wrapped"])
    def test_content_decides(self, folder, suffix, compress, form):
        rows = [{"problem": f"How many {i}?", "answer": str(i)} for i in range(3)]
        text = "\n".join(map(json.dumps, rows)) if form == "lines" else json.dumps(rows)
        if form == "indented":
            text = json.dumps(rows, indent=2)
        if form == "wrapped":
            if suffix != ".json":
                return
            text = json.dumps({"data": rows}, indent=2)
        content = text.encode()
        path = folder / f"x{suffix}"
        if compress:
            ends = {gzip.compress: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz"}
            content, path = compress(content), path.with_name(path.name + ends[compress])
        path.write_bytes(content)
        assert [s.answer for s in load_samples(path)] == ["0", "1", "2"]

    def test_one_object_is_one_row(self, folder):
        path = folder / "x.json"
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "3"}]
        for row in ({"problem": "a?", "answer": "3", "tags": ["x"]}, {"messages": messages}):
            path.write_text(json.dumps(row))
            assert [s.answer for s in load_samples(path)] == ["3"]

    def test_torn_compression_is_named(self, folder):
        path = folder / "x.jsonl.gz"
        path.write_bytes(gzip.compress(b'{"problem": "a?", "answer": "3"}\n' * 99)[:-9])
        assert dict(check(path).counts) == {"broken_compression": 1}

    def test_repeated_ids_are_a_note(self):
        samples = field("12_dup_id_same_picture.jsonl")
        assert [s.id for s in samples] == ["img-0001", "img-0001#2"]
        report = check(FIELD / "12_dup_id_same_picture.jsonl")
        assert report.ok and any(
            "1 row with an id of an earlier row" in note for note in report.notes
        )


def _copy_snapshot(folder: Path, names: list[str]) -> Path:
    source = FIELD / "hf_snapshot" / "data"
    target = folder / "snapshot"
    target.mkdir()
    (target / "config.json").write_text("{}")
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        split = next((s for s in ("test", "validation") if s in name), "train")
        shutil.copy(source / f"{split}-00000-of-00001.parquet", target / name)
    return target


SPLIT_NAMES = [("train", "test"), ("training", "val"), ("train2014", "val2014")]


class TestSplits:
    def test_train_of_a_snapshot(self):
        opened = load_samples(FIELD / "hf_snapshot")
        assert [s.answer for s in opened] == ["1", "2"]
        (note,) = opened.notes.lines()
        assert note.startswith("reads split train") and "test, validation" in note
        assert [s.answer for s in load_samples(f"{FIELD}/hf_snapshot@test")] == ["3"]
        assert [s.answer for s in load_samples(f"{FIELD}/hf_snapshot@train#1")] == ["1"]

    @pytest.mark.parametrize(
        "names",
        [
            ["data/train-00000-of-00001.parquet", "data/testmini-00000-of-00001.parquet"],
            ["train/0000.parquet", "test/0000.parquet"],
            ["default/train/0000.parquet", "default/validation/0000.parquet"],
            ["train.parquet", "test.parquet"],
            ["my_train.parquet", "my_test.parquet"],
            ["train-00000-of-00001.parquet", "hard-00000-of-00001.parquet"],
        ],
    )
    def test_layouts(self, folder, names):
        opened = load_samples(_copy_snapshot(folder, names))
        assert {Path(s.file).relative_to(folder / "snapshot") for s in opened} == {Path(names[0])}
        assert opened.notes.lines()

    def test_without_train_the_names_are_given(self, folder):
        path = _copy_snapshot(folder, ["test.parquet", "validation.parquet"])
        with pytest.raises(FileError, match=r"holds test, validation\. Write .*@SPLIT"):
            load_samples(path)
        assert len(list(load_samples(f"{path}@test"))) == 1

    def test_saved_by_datasets(self, folder):
        import datasets

        splits = {
            name: datasets.Dataset.from_list([{"problem": f"{name}?", "answer": name}])
            for name in ("seen", "train", "test")
        }
        datasets.DatasetDict(splits).save_to_disk(str(folder / "saved"))
        opened = load_samples(folder / "saved")
        assert [s.answer for s in opened] == ["train"]
        assert "seen" in opened.notes.lines()[0]
        assert [s.answer for s in load_samples(f"{folder}/saved@seen")] == ["seen"]

    @pytest.mark.parametrize("name", ["split", "data_split", "Split", "subset", "partition"])
    @pytest.mark.parametrize(
        ("train", "test"), [("train", "test"), ("training", "val"), ("train2014", "val2014")]
    )
    def test_split_column(self, folder, name, train, test):
        rows = [
            {"problem": f"{i}?", "answer": "3", name: s} for i, s in enumerate((test, train, test))
        ]
        report = checked(folder, *rows)
        assert dict(report.counts) == {"mixed_splits": 1}
        assert f"x.jsonl@{train}" in report.findings[0].message
        path = f"{folder}/x.jsonl"
        with pytest.raises(FileError, match="splits are never mixed"):
            read_file(DataConfig(on_bad_row="skip"), path)
        assert [s.row for s in load_samples(f"{path}@{train}")] == [2]

    def test_split_column_of_verl(self, folder):
        prompt = [{"role": "user", "content": "?"}]
        rows = [
            {
                "prompt": prompt,
                "reward_model": {"ground_truth": "3"},
                "extra_info": {"split": s, "index": 0},
            }
            for s in ("train", "test")
        ]
        assert dict(checked(folder, *rows).counts) == {"mixed_splits": 1}

    def test_one_split_is_a_note(self):
        report = check(FIELD / "docvqa.parquet")
        assert report.ok and "all rows are of split val (column data_split)" in report.notes


class TestReport:
    def test_unused_columns_are_named(self, folder, capsys):
        from prism_lite.__main__ import main

        row = {"question": "How?", "answer": "3", "hint": "Look.", "skill": "x", "empty": ""}
        report = checked(folder, row, row | {"question": "Why?", "Level": 2})
        assert "not used: hint, skill, Level" in report.notes
        assert main(["data", "check", str(folder / "x.jsonl")]) == 0
        assert "note: not used: hint, skill, Level" in capsys.readouterr().out

    def test_run_names_them_too(self, folder, capsys):
        from rich.console import Console

        path = write_jsonl(
            folder / "x.jsonl", [{"question": "How?", "answer": "3", "hint": "Look."}]
        )
        console = Console(record=True, width=200)
        read_file(DataConfig(), str(path), console=console)
        assert "not used: hint" in console.export_text()

    def test_first_row_of_each_stage_is_shown(self, folder, capsys):
        from prism_lite.__main__ import main

        rows = [
            {
                "prompt": "Which [bold]one[/bold]?",
                "image": "a.png",
                "choices": CHOICES,
                "answer": "B",
            },
            {"prompt": "How?", "answer": "3", "accepted": ["three"], "demonstration": TRIPLE},
            {"prompt": "And?", "teacher": TRIPLE, "student": STUDENT},
        ]
        path = write_jsonl(folder / "x.jsonl", rows)
        assert main(["data", "check", str(path)]) == 0
        printed = capsys.readouterr().out
        for text in (
            "first row of rlvr (x.jsonl, line 1)",
            "[user] <image>Which [bold]one[/bold]?\nA. cat\nB. dog",
            "40 x 30 pixels",
            "[answer] B",
            "first row of sft (x.jsonl, line 2)",
            "[demonstration] <caption>",
            "[also accepted] three",
            "first row of warmup, align (x.jsonl, line 3)",
        ):
            assert text in printed
