"""The row that is explained, and the template: what is shown is what the program reads."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from prism_lite.__main__ import main
from prism_lite.data.checks.check import check
from prism_lite.data.checks.rules import NEEDED_FIELDS, CheckRules, stages_of
from prism_lite.data.formats.load import load_samples
from prism_lite.data.template import EXAMPLES, FIELDS, STAGE_NAMES, explain, write_template
from prism_lite.recipe import load_recipe

BASE = Path(__file__).parents[3] / "prism_lite" / "digits" / "base"
GUIDE = Path(__file__).parents[3] / "prism_lite" / "data" / "DATA.md"


def test_examples_have_what_their_stage_needs(tmp_path):
    write_template(tmp_path / "t.jsonl")
    (tmp_path / "t_pictures").rename(tmp_path / "pictures")
    stages = dict(zip(STAGE_NAMES, ("sft", "warmup", "align", "rlvr", "eval"), strict=True))
    for name, row in EXAMPLES.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(row) + "\n")
        assert check(path, rules=CheckRules(stage=stages[name])).ok, name  # type: ignore
        (sample,) = load_samples(path)
        expected = {"held-out": "rlvr"}.get(name, stages[name])
        assert expected in stages_of(sample)
        column = STAGE_NAMES.index(name) + 1
        needed = {cells[0] for cells in FIELDS if cells[column] == "needed"}
        assert needed <= row.keys() and NEEDED_FIELDS[stages[name]] in needed  # type: ignore
        unread = {cells[0] for cells in FIELDS if cells[column] == "-"}
        assert not unread & row.keys(), f"{name} shows a field that it does not read"
        for field in needed - {"prompt"}:
            less = {key: value for key, value in row.items() if key != field}
            path.write_text(json.dumps(less) + "\n")
            assert not check(path, rules=CheckRules(stage=stages[name])).ok or field == "student"  # type: ignore


def test_the_table_is_in_the_help_and_in_the_guide(capsys):
    with pytest.raises(SystemExit):
        main(["data", "--help"])
    assert explain() in capsys.readouterr().out
    assert explain() in GUIDE.read_text()
    assert max(map(len, explain().splitlines()[:11])) <= 120


def test_the_template_is_clean_and_serves_every_stage(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "template", "mine.jsonl"]) == 0
    printed = capsys.readouterr().out
    assert "prism-lite data check mine.jsonl" in printed and "data.train=mine.jsonl" in printed
    assert main(["data", "check", "mine.jsonl", "--stage", "align"]) == 0
    printed = capsys.readouterr().out
    assert "3 rows, 3 clean" in printed and "rows by stage: sft 3, align 3, rlvr 3\n" in printed
    samples = list(load_samples("mine.jsonl"))
    assert [stages_of(sample) for sample in samples] == [("sft", "align", "rlvr")] * 3
    assert [len(sample.teachers) for sample in samples] == [2, 1, 1]
    assert len({sample.pictures[0].open().tobytes() for sample in samples}) == 3
    for path in ("mine.jsonl", "mine.csv"):
        assert main(["data", "template", path]) == 2
    text = capsys.readouterr().err
    assert "mine.jsonl exists" in text and "mine.csv: a template is a .jsonl file" in text
    Path("mine.jsonl").unlink()
    assert main(["data", "template", "mine.jsonl"]) == 2, "the pictures are left as they are"


def test_the_printed_command_leaves_room_for_its_texts(tmp_path, monkeypatch, capsys):
    """The tiny tokenizer knows only the embedded task's words: 80 tokens, its limit, are few letters."""
    monkeypatch.chdir(tmp_path)
    main(["data", "template", "mine.jsonl"])
    program, command, *words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert (program, command) == ("prism-lite", "run")
    recipe = words[words.index("--recipe") + 1]
    config = load_recipe(recipe, [word for word in words if "=" in word])
    assert config.data.task == "files" and config.align.method == "sft"
    tokenizer = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    texts = [text for sample in load_samples("mine.jsonl") for text in sample.teachers]
    assert max(len(tokenizer.encode(t).ids) for t in texts) < config.sampling.max_completion_tokens


def test_a_check_says_which_stage_has_no_row_and_what_writes_it(tmp_path, capsys):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "How many squares?", "answer": "2"}\n')
    assert main(["data", "check", str(tmp_path / "mine.jsonl")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "sft 0 (no demonstration: `prism-lite teach --field both` writes them" in printed
    assert "align 0 (no teacher text: `prism-lite teach` writes it), rlvr 1" in printed
