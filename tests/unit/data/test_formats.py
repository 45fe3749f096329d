"""Every convention and file type gives the same Sample; odd files are refused by name."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path

import pytest
from data_conventions import CONVENTIONS
from data_rows import QUESTION, ROW, STUDENT, TRIPLE, one, png, write_jsonl
from PIL import Image

from prism_lite.data.formats.base import FileError, RowError
from prism_lite.data.formats.detect import MEANINGS, detect
from prism_lite.data.formats.load import load_samples
from prism_lite.data.formats.pictures import to_picture
from prism_lite.data.formats.readers import READERS
from prism_lite.data.formats.turns import strip_answer
from prism_lite.types import Sample, Turn


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
        picture = to_picture({"bytes": png(), "path": None}, [])
        assert picture.open().size == (40, 30)
        assert to_picture(png(), []).id == picture.id
        image = to_picture(Image.new("RGB", (4, 5)), [])
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

    def test_urls_are_not_fetched(self, folder):
        path = write_jsonl(folder / "x.jsonl", [{**ROW, "images": ["https://example.org/a.png"]}])
        with pytest.raises(RowError, match="is a URL; download it beforehand") as refused:
            one(path)
        assert "data." not in str(refused.value), "no setting allows it"


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


def test_every_convention_has_a_meaning_for_users():
    assert MEANINGS.keys() == READERS.keys()
