"""Every convention and file type gives the same Sample; odd files are refused by name."""

from __future__ import annotations

import base64
import csv
import io
import json
import types
from pathlib import Path

import pytest
from data_rows import CHAT, QUESTION, ROW, STUDENT, TRIPLE, png, write_jsonl
from PIL import Image

from prism_lite.data import formats
from prism_lite.data.formats import FileError, RowError, load_samples, render_sample
from prism_lite.data.formats_detect import detect
from prism_lite.data.formats_turns import strip_answer
from prism_lite.types import Sample, Turn


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(png(colour=(0, 0, 200)))
    return tmp_path


def one(path: Path, **options) -> Sample:
    (sample,) = load_samples(path, **options)
    return sample


# Each row holds one picture and QUESTION; the last string names what it knows: demonstration,
# Answer, teacher, student.
CHAT_ANSWERED = [*CHAT, {"role": "assistant", "content": TRIPLE}]
SHAREGPT = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": TRIPLE}]
PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
CONVENTIONS = {
    "lf_sharegpt": ({"conversations": SHAREGPT, "images": ["a.png"]}, "sharegpt", "dA"),
    "llava": ({"id": "1", "image": "a.png", "conversations": SHAREGPT}, "sharegpt", "dA"),
    "lf_openai": ({"messages": CHAT_ANSWERED, "images": ["a.png"]}, "messages", "dA"),
    "trl_sft_without_mark": (
        {
            "messages": [
                {"role": "user", "content": QUESTION},
                {"role": "assistant", "content": TRIPLE},
            ],
            "images": ["a.png"],
        },
        "messages",
        "dA",
    ),
    "trl_parts": (
        {
            "messages": [
                *PARTS,
                {"role": "assistant", "content": [{"type": "text", "text": TRIPLE}]},
            ],
            "images": ["a.png"],
        },
        "messages",
        "dA",
    ),
    "trl_prompt_completion": (
        {"prompt": PARTS, "completion": CHAT_ANSWERED[1:], "image": "a.png"},
        "prompt_completion",
        "dA",
    ),
    "trl_preference": (
        {
            "prompt": PARTS,
            "chosen": [{"role": "assistant", "content": TRIPLE}],
            "rejected": [{"role": "assistant", "content": STUDENT}],
            "images": ["a.png"],
        },
        "preference",
        "ts",
    ),
    "trl_implicit_prompt": (
        {
            "chosen": [*CHAT, {"role": "assistant", "content": TRIPLE}],
            "rejected": [*CHAT, {"role": "assistant", "content": STUDENT}],
            "images": ["a.png"],
        },
        "preference",
        "ts",
    ),
    "trl_grpo": ({"prompt": CHAT, "image": "a.png", "solution": "3"}, "prompt", "A"),
    "lf_preference": (
        {
            "conversations": SHAREGPT[:1],
            "chosen": {"from": "gpt", "value": TRIPLE},
            "rejected": {"from": "gpt", "value": STUDENT},
            "images": ["a.png"],
        },
        "preference",
        "ts",
    ),
    "lf_kto": (
        {"messages": CHAT_ANSWERED, "kto_tag": True, "images": ["a.png"]},
        "preference",
        "t",
    ),
    "lf_alpaca": (
        {"instruction": f"<image>{QUESTION}", "input": "", "output": TRIPLE, "images": ["a.png"]},
        "alpaca",
        "dA",
    ),
    "verl": (
        {
            "data_source": "x",
            "prompt": CHAT,
            "images": [{"path": "a.png"}],
            "reward_model": {"style": "rule", "ground_truth": "3"},
            "extra_info": {"index": 0},
        },
        "verl",
        "A",
    ),
    "easyr1": ({"problem": f"<image>{QUESTION}", "answer": "3", "images": ["a.png"]}, "query", "A"),
    "swift_query": (
        {"query": f"<image>{QUESTION}", "response": TRIPLE, "images": ["a.png"]},
        "query",
        "dA",
    ),
    "swift_rejected": (
        {"messages": CHAT_ANSWERED, "rejected_response": STUDENT, "images": ["a.png"]},
        "preference",
        "ts",
    ),
    "swift_image_url": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "a.png"}},
                        {"type": "text", "text": QUESTION},
                    ],
                },
                CHAT_ANSWERED[1],
            ]
        },
        "messages",
        "dA",
    ),
    "r1v": (
        {"image": "a.png", "problem": QUESTION, "solution": "<answer> 3 </answer>"},
        "query",
        "A",
    ),
    "openrlhf": (
        {
            "message": json.dumps(
                [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "image": "a.png"},
                            {"type": "text", "text": QUESTION},
                        ],
                    }
                ]
            ),
            "answer": "$3$",
        },
        "openrlhf",
        "A",
    ),
    "axolotl": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "path": "a.png"},
                        {"type": "text", "text": QUESTION},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "text": TRIPLE}]},
            ]
        },
        "messages",
        "dA",
    ),
    "mmmu": (
        {
            "question": f"<image 1> {QUESTION}",
            "options": "[]",
            "answer": "3",
            "image_1": {"path": "a.png"},
        },
        "vqa",
        "A",
    ),
    "mathvista": (
        {"question": QUESTION, "answer": "3", "choices": None, "decoded_image": {"path": "a.png"}},
        "vqa",
        "A",
    ),
    "prism_align": (
        {
            "prompt": CHAT,
            "images": [{"path": "a.png"}],
            "reward_model": {"style": "rule", "ground_truth": "3"},
            "teacher_response": TRIPLE,
            "teacher_caption": "- a red bar",
            "teacher_cot": "It is 3.",
            "equivalent_answers": None,
        },
        "prism_align",
        "At",
    ),
    "prism_warmup": (
        {
            "question": QUESTION,
            "image": "a.png",
            "teacher_caption": "- a red bar",
            "teacher_cot": "<think>It is 3.</think>\n<answer>3</answer>",
            "student_caption": "<caption>- a blue bar</caption>",
            "student_cot": "<think>It is 4.</think>\n<answer>4</answer>",
        },
        "prism_warmup",
        "ts",
    ),
    "prism_distill": (
        {"conversations": SHAREGPT, "images": ["a.png"], "system": ""},
        "sharegpt",
        "dA",
    ),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_convention_gives_the_same_sample(name, folder):
    row, convention, known = CONVENTIONS[name]
    opened = load_samples(write_jsonl(folder / "rows.jsonl", [row]))
    assert opened.convention == convention
    (sample,) = opened
    expected = Sample(
        id="1",
        turns=(Turn("user", f"<image>{QUESTION}"),),
        pictures=sample.pictures,
        answer="3" if "A" in known else None,
        demonstration=TRIPLE if "d" in known else None,
        teacher=TRIPLE if "t" in known else None,
        student=STUDENT if "s" in known else None,
        source="rows.jsonl, line 1",
    )
    assert sample == expected
    assert [picture.source for picture in sample.pictures] == [folder / "a.png"]
    assert sample.pictures[0].open().getpixel((0, 0)) == (200, 30, 30)


ROWS = [ROW, {**ROW, "answer": "1,234"}, {**ROW, "prompt": [{"role": "user", "content": "ünï"}]}]


def _write(kind: str, folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        return write_jsonl(path, ROWS)
    if kind == "json":
        path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    elif kind in ("csv", "tsv"):
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, delimiter="," if kind == "csv" else "\t")
            writer.writerow(ROW)
            for row in ROWS:
                writer.writerow(
                    [json.dumps(row["prompt"]), json.dumps(row["images"]), row["answer"]]
                )
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "arrow":
        table = pa.Table.from_pylist(ROWS)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    elif kind == "stream.arrow":
        table = pa.Table.from_pylist(ROWS)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize(
    "kind", ["jsonl", "json", "csv", "tsv", "parquet", "arrow", "stream.arrow"]
)
def test_every_file_type_gives_the_same_samples(kind, folder):
    samples = list(load_samples(_write(kind, folder)))
    assert [sample.answer for sample in samples] == ["3", "1,234", "3"]
    assert [sample.id for sample in samples] == ["1", "2", "3"]
    assert [sample.turns[0].text for sample in samples] == [
        f"<image>{QUESTION}",
        f"<image>{QUESTION}",
        "<image>ünï",
    ]
    assert all(sample.pictures[0].source == folder / "a.png" for sample in samples)


def test_folder_of_files(folder):
    (folder / "part").mkdir()
    write_jsonl(folder / "part" / "0.jsonl", [ROW])
    write_jsonl(folder / "part" / "1.jsonl", [{**ROW, "answer": "4"}])
    samples = load_samples(folder / "part", image_root=str(folder))
    assert [sample.answer for sample in samples] == ["3", "4"]


def test_folder_saved_by_datasets(folder):
    import datasets

    rows = [{"problem": "How high?", "answer": str(i), "image": png()} for i in range(3)]
    features = datasets.Features(
        {
            "problem": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "image": datasets.Image(),
        }
    )
    table = datasets.Dataset.from_list(
        [{**row, "image": {"bytes": row["image"], "path": None}} for row in rows], features=features
    )
    table.save_to_disk(str(folder / "saved"))
    samples = list(load_samples(folder / "saved"))
    assert [sample.answer for sample in samples] == ["0", "1", "2"]
    assert samples[0].pictures[0].open().size == (40, 30)


class TestPictures:
    @pytest.mark.parametrize(
        "make",
        [
            lambda folder: "a.png",
            lambda folder: str(folder / "a.png"),
            lambda folder: f"file://{folder / 'a.png'}",
            lambda folder: base64.b64encode(png()).decode(),
            lambda folder: "data:image/png;base64," + base64.b64encode(png()).decode(),
            lambda folder: {"bytes": None, "path": "a.png"},
            lambda folder: {"base64": base64.b64encode(png()).decode()},
            lambda folder: {"url": "a.png"},
            lambda folder: {"image_url": {"url": f"file://{folder / 'a.png'}"}},
        ],
    )
    def test_references(self, make, folder):
        sample = one(write_jsonl(folder / "x.jsonl", [{**ROW, "images": [make(folder)]}]))
        assert sample.pictures[0].open().getpixel((0, 0)) == (200, 30, 30)

    def test_bytes_and_pil(self):
        from prism_lite.data.formats_pictures import PictureRules, to_picture

        picture = to_picture({"bytes": png(), "path": None}, PictureRules())
        assert picture.open().size == (40, 30)
        assert to_picture(png(), PictureRules()).id == picture.id
        image = to_picture(Image.new("RGB", (4, 5)), PictureRules())
        assert image.open().size == (4, 5) and image.id != picture.id

    def test_several_pictures_keep_their_places(self, folder):
        prompt = [{"role": "user", "content": "Is <image> like <image>?"}]
        row = {**ROW, "prompt": prompt, "images": ["b.png", "a.png"]}
        sample = one(write_jsonl(folder / "x.jsonl", [row]))
        assert [Path(picture.id).name for picture in sample.pictures] == ["b.png", "a.png"]
        assert sample.turns[0].text == "Is <image> like <image>?"

    def test_numbered_marks_order_the_pictures(self, folder):
        row = {
            "question": "Is <image 2> like <image 1>?",
            "options": "['yes', 'no']",
            "answer": "A",
            "image_1": "a.png",
            "image_2": "b.png",
        }
        sample = one(write_jsonl(folder / "x.jsonl", [row]))
        assert [Path(picture.id).name for picture in sample.pictures] == ["b.png", "a.png"]
        assert sample.turns[0].text == "Is <image> like <image>?\nA. yes\nB. no"
        assert sample.choices == ("yes", "no")

    def test_several_roots(self, folder, tmp_path):
        (folder / "deep").mkdir()
        (folder / "deep" / "c.png").write_bytes(png())
        path = write_jsonl(folder / "x.jsonl", [{**ROW, "images": ["c.png"]}])
        root = f"{folder / 'none'}:{folder / 'deep'}"
        assert one(path, image_root=root).pictures[0].source == folder / "deep" / "c.png"

    def test_pixel_limits_are_kept(self, folder):
        part = {"type": "image", "image": "a.png", "min_pixels": 784, "max_pixels": 50176}
        prompt = [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]
        sample = one(write_jsonl(folder / "x.jsonl", [{"prompt": prompt, "answer": "3"}]))
        assert (sample.pictures[0].min_pixels, sample.pictures[0].max_pixels) == (784, 50176)

    def test_url_only_on_request(self, folder, monkeypatch):
        path = write_jsonl(folder / "x.jsonl", [{**ROW, "images": ["https://example.org/a.png"]}])
        with pytest.raises(RowError, match="is a URL; download it beforehand"):
            one(path)
        monkeypatch.setattr(
            "prism_lite.data.formats_pictures.urllib.request.urlopen",
            lambda url, timeout: io.BytesIO(png()),
        )
        assert one(path, allow_urls=True).pictures[0].open().size == (40, 30)


class TestColumns:
    def test_map_for_other_names(self, folder):
        row = {"frage": "How high?", "bild": "a.png", "loesung": 3, "gleich": ["3.0"], "nr": "x7"}
        names = {"prompt": "frage", "images": "bild", "answer": "loesung", "accepted": "gleich"}
        path = write_jsonl(folder / "x.jsonl", [row])
        with pytest.raises(FileError, match=r"no known format has the fields frage, bild, loesung"):
            load_samples(path)
        sample = one(path, columns={**names, "id": "nr"})
        assert (sample.id, sample.answer, sample.accepted) == ("x7", "3", ("3.0",))
        assert sample.turns == (Turn("user", "<image>How high?"),)

    def test_unknown_and_missing_names(self, folder):
        path = write_jsonl(folder / "x.jsonl", [{"a": 1}])
        with pytest.raises(ValueError, match="unknown names"):
            load_samples(path, columns={"promt": "a"})
        with pytest.raises(ValueError, match="does not name the prompt column"):
            load_samples(path, columns={"answer": "a"})
        with pytest.raises(RowError, match="no column 'b'"):
            one(path, columns={"prompt": "b"})


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ("<answer> 3 </answer>", "3"),
        ("$3$", "3"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"$\boxed{3}$", "3"),
        (r"So it is \boxed{7}.", "7"),
        ("$5", "$5"),
        ("A. cat", "A. cat"),
        (3, "3"),
        (2.5, "2.5"),
        (True, "yes"),
        (None, None),
        ("", ""),
    ],
)
def test_strip_answer(value, answer):
    assert strip_answer(value) == answer


def test_answer_columns_in_order(folder):
    row = {**ROW, "reward_model": {"ground_truth": "1"}, "solution": "2", "answer": "3"}
    assert one(write_jsonl(folder / "x.jsonl", [row])).answer == "1"
    del row["reward_model"]
    assert one(write_jsonl(folder / "x.jsonl", [row])).answer == "2"


def test_several_accepted_answers(folder):
    row = {**ROW, "answer": ["3", "three"], "equivalent_answers": ["III"]}
    sample = one(write_jsonl(folder / "x.jsonl", [row]))
    assert (sample.answer, sample.accepted) == ("3", ("three", "III"))


class TestRegistry:
    def _registry(self, folder: Path, entry: dict, rows: list[dict]) -> Path:
        write_jsonl(folder / "mine.jsonl", rows)
        entries = {"mine": entry, "other": {"hf_hub_url": "owner/name"}}
        (folder / "dataset_info.json").write_text(json.dumps(entries))
        return folder / "dataset_info.json"

    def test_columns_and_tags(self, folder):
        talk = [{"who": "frage", "was": f"<image>{QUESTION}"}, {"who": "antwort", "was": TRIPLE}]
        entry = {
            "file_name": "mine.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "talk", "images": "pics"},
            "tags": {
                "role_tag": "who",
                "content_tag": "was",
                "user_tag": "frage",
                "assistant_tag": "antwort",
            },
        }
        path = self._registry(folder, entry, [{"talk": talk, "pics": ["a.png"]}])
        sample = one(f"{path}:mine")
        assert (sample.question, sample.demonstration) == (f"<image>{QUESTION}", TRIPLE)

    def test_alpaca_columns(self, folder):
        entry = {"file_name": "mine.jsonl", "columns": {"prompt": "q", "response": "a"}}
        path = self._registry(folder, entry, [{"q": QUESTION, "a": "3"}])
        sample = one(f"{path}:mine")
        assert (sample.question, sample.demonstration, sample.answer) == (QUESTION, "3", "3")

    def test_ranking(self, folder):
        entry = {"file_name": "mine.jsonl", "formatting": "sharegpt", "ranking": True}
        entry["columns"] = {"messages": "conversations", "chosen": "good", "rejected": "bad"}
        row = {
            "conversations": [{"from": "human", "value": QUESTION}],
            "good": {"from": "gpt", "value": TRIPLE},
            "bad": {"from": "gpt", "value": STUDENT},
        }
        sample = one(f"{self._registry(folder, entry, [row])}:mine")
        assert (sample.teacher, sample.student) == (TRIPLE, STUDENT)

    def test_name_is_needed(self, folder):
        path = self._registry(folder, {"file_name": "mine.jsonl"}, [ROW])
        with pytest.raises(FileError, match="one of mine, other"):
            load_samples(path)


class TestHub:
    """`datasets.load_dataset` is replaced: what it is asked and what it gives is recorded here."""

    @pytest.fixture
    def calls(self, monkeypatch):
        import datasets

        calls = []
        rows = [
            {"problem": "How high?", "answer": str(i), "image": {"bytes": png()}} for i in range(5)
        ]

        class Table(types.SimpleNamespace):
            def cast_column(self, name, feature):
                calls.append(("cast", name, feature.decode))
                return self

            def __iter__(self):
                return iter(rows)

        def load_dataset(path, name, **options):
            calls.append((path, name, options))
            return Table(features={"problem": datasets.Value("string"), "image": datasets.Image()})

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    def test_id_subset_split_count(self, calls):
        samples = list(load_samples("owner/name:small@validation#3"))
        assert [sample.answer for sample in samples] == ["0", "1", "2"]
        assert samples[0].pictures[0].open().size == (40, 30)
        options = {"split": "validation", "data_files": None, "streaming": True}
        assert calls[0] == ("owner/name", "small", options)
        assert calls[1] == ("cast", "image", False)

    def test_what_the_hub_refuses_is_one_sentence(self, monkeypatch):
        import datasets

        def load_dataset(path, name, **options):
            raise FileNotFoundError("Dataset 'owner/gone' doesn't exist\nlong trace")

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        with pytest.raises(
            FileError, match=r"owner/gone cannot be loaded .*doesn't exist\); check"
        ):
            load_samples("owner/gone")

    def test_mistyped_local_path_is_no_hub_id(self, folder, monkeypatch, calls):
        monkeypatch.chdir(folder)
        (folder / "data").mkdir()
        for path in ("data/train.jsonl", "data/my/train.jsonl", "data/train", "none.jsonl"):
            with pytest.raises(FileError, match="does not exist"):
                load_samples(path)
        assert calls == []

    def test_file_of_a_repository(self, calls):
        next(iter(load_samples("prism-vlm/rl_dataset/rl_training_data_5.9k.parquet")))
        assert calls[0][0] == "prism-vlm/rl_dataset"
        assert calls[0][2]["data_files"] == "rl_training_data_5.9k.parquet"
        assert calls[0][2]["split"] == "train"


class TestFile:
    def test_limit_and_count(self, folder):
        path = write_jsonl(folder / "x.jsonl", [ROW] * 5)
        assert len(list(load_samples(path, limit=2))) == 2
        assert len(list(load_samples(f"{path}#3"))) == 3
        assert len(list(load_samples(f"{path}#3", limit=4))) == 3

    def test_bad_row_is_an_error_or_counted(self, folder):
        path = folder / "x.jsonl"
        path.write_text(json.dumps(ROW) + "\n{broken\n\n" + json.dumps(ROW) + "\n")
        with pytest.raises(RowError, match=r"x\.jsonl, line 2: broken JSON"):
            list(load_samples(path))
        opened = load_samples(path, on_bad_row="skip")
        assert [sample.id for sample in opened] == ["1", "4"]
        assert dict(opened.skipped) == {"broken_json": 1}
        assert list(opened) and dict(opened.skipped) == {"broken_json": 1}  # counted anew

    def test_describe_renders_a_sample(self, folder):
        text = load_samples(write_jsonl(folder / "x.jsonl", [ROW])).describe()
        assert "prompt format, first sample:" in text
        assert f"[user] <image>{QUESTION}" in text and "[answer] 3" in text

    def test_render_cuts_long_text(self):
        text = render_sample(Sample("1", (Turn("user", "x" * 2000),)))
        assert text.endswith("... (2000 characters)")

    def test_json_array_in_small_pieces(self, folder, monkeypatch):
        monkeypatch.setattr("prism_lite.data.formats_text._CHUNK_CHARACTERS", 7)
        path = folder / "x.json"
        path.write_text(
            " [" + ",\n".join(json.dumps({**ROW, "answer": i}) for i in range(9)) + " ] "
        )
        assert [sample.answer for sample in load_samples(path)] == [str(i) for i in range(9)]

    def test_object_around_the_rows(self, folder):
        path = folder / "x.json"
        path.write_text(json.dumps({"version": 1, "data": [ROW, ROW]}))
        assert len(list(load_samples(path))) == 2

    @pytest.mark.parametrize("suffix", [".pt", ".pkl", ".pth", ".npy", ".bin"])
    def test_pickle_is_refused_unread(self, folder, suffix):
        path = folder / f"x{suffix}"
        path.write_bytes(b"\x80\x04not even a pickle")
        with pytest.raises(FileError, match="never loaded"):
            load_samples(path)

    def test_missing_file_and_folder(self, folder):
        with pytest.raises(ValueError, match="does not exist"):
            load_samples(folder / "none.jsonl")
        (folder / "empty").mkdir()
        with pytest.raises(ValueError, match=r"holds no \.jsonl"):
            load_samples(folder / "empty")

    def test_heavy_imports_stay_out(self, folder):
        import subprocess
        import sys

        path = write_jsonl(folder / "x.jsonl", [ROW])
        code = (
            "import sys\nfrom prism_lite.data.formats import load_samples\n"
            f"assert len(list(load_samples({str(path)!r}))) == 1\n"
            "bad = {'datasets', 'pyarrow', 'pandas'} & set(sys.modules)\nassert not bad, bad\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_system_column_and_history(folder):
    row = {
        "instruction": "And now?",
        "input": "",
        "output": "4",
        "system": "Be brief.",
        "history": [["How high?", "3"]],
    }
    sample = one(write_jsonl(folder / "x.jsonl", [row]))
    assert sample.turns == (
        Turn("system", "Be brief."),
        Turn("user", "How high?"),
        Turn("assistant", "3"),
        Turn("user", "And now?"),
    )
    assert sample.demonstration == "4"


def test_swift_objects_fill_their_marks(folder):
    row = {
        "messages": [
            {"role": "user", "content": "<image>Where is <ref-object>?"},
            {"role": "assistant", "content": "At <bbox>."},
        ],
        "images": ["a.png"],
        "objects": {"ref": ["the bar"], "bbox": [[1, 2, 3, 4]]},
    }
    sample = one(write_jsonl(folder / "x.jsonl", [row]))
    assert sample.question == "<image>Where is the bar?"
    assert sample.demonstration == "At [1, 2, 3, 4]."


def test_detect_needs_values():
    assert detect({"messages": None, "query": "q", "response": "r"}) == "query"
    assert detect({"a": 1}) is None
    assert formats.FileError is FileError
