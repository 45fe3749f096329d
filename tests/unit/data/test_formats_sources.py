"""Where rows come from: registries, the hub, limits, odd files."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest
from data_rows import QUESTION, ROW, STUDENT, TRIPLE, one, png, write_jsonl

from prism_lite.config import DataConfig
from prism_lite.data.formats.base import FileError, RowError
from prism_lite.data.formats.load import load_samples, render_sample
from prism_lite.data.stage_rows import read_file, rows_for
from prism_lite.types import Sample, Turn


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

    def test_roles_of_the_usual_names_need_no_tag(self, folder):
        talk = [{"role": "human", "was": QUESTION}, {"role": "gpt", "was": TRIPLE}]
        tags = {"role_tag": "role", "content_tag": "was"}
        entry = {"file_name": "mine.jsonl", "formatting": "sharegpt", "tags": tags}
        path = self._registry(folder, entry, [{"conversations": talk}])
        assert one(f"{path}:mine").demonstration == TRIPLE

    def test_first_row_without_the_tags(self, folder):
        entry = {"file_name": "mine.jsonl", "formatting": "openai"}
        path = self._registry(folder, entry, [{"messages": [{"from": "human", "value": "?"}]}])
        message = r"no readable row; the first: mine\.jsonl, line 1: a message lacks 'role'"
        with pytest.raises(FileError, match=message):
            load_samples(f"{path}:mine")

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
        other = {**ROW, "answer": "4"}
        path.write_text(json.dumps(ROW) + "\n{broken\n\n" + json.dumps(other) + "\n")
        with pytest.raises(RowError, match=r"x\.jsonl, line 2: broken JSON"):
            list(load_samples(path))
        data = DataConfig(on_bad_row="skip")
        samples, skipped = rows_for(data, read_file(data, str(path)), "rlvr")
        assert [sample.id for sample in samples] == ["1", "4"]
        assert [(row.row, row.kind) for row in skipped] == [(2, "broken_json")]

    def test_render_names_what_a_row_has(self, folder):
        (sample,) = load_samples(write_jsonl(folder / "x.jsonl", [ROW]))
        assert render_sample(sample).splitlines() == [
            f"[user] <image>{QUESTION}",
            f"[picture 1] {folder / 'a.png'}, 40 x 30 pixels",
            "[answer] 3",
        ]

    def test_render_cuts_long_text(self):
        text = render_sample(Sample("1", (Turn("user", "x" * 2000),)))
        assert text.endswith("... (2000 characters)")

    def test_json_array_in_small_pieces(self, folder, monkeypatch):
        monkeypatch.setattr("prism_lite.data.formats.text._CHUNK_CHARACTERS", 7)
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
            "import sys\nfrom prism_lite.data.formats.load import load_samples\n"
            f"assert len(list(load_samples({str(path)!r}))) == 1\n"
            "bad = {'datasets', 'pyarrow', 'pandas'} & set(sys.modules)\nassert not bad, bad\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
