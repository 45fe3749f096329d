"""`prism-lite teach --local`: the tiny model as teacher, through the code path of a large one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prism_lite.config import DigitsConfig
from prism_lite.data.checks.check import check
from prism_lite.data.formats.load import load_samples
from prism_lite.digits.task import make_samples
from prism_lite.files import read_jsonl
from prism_lite.teach.journal import journal_path
from tests.pipeline.commands import check_refused, in_process

NUM = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Strips of digits as files of one's own, questions with answers and no completion."""
    folder = tmp_path_factory.mktemp("digits")
    rows = []
    kinds = ("count", "compare")
    for i, sample in enumerate(
        make_samples(DigitsConfig(), split="heldout", kinds=kinds, num=NUM, seed="teach")
    ):
        sample.pictures[0].open().save(folder / f"{i}.png")
        question = sample.question.replace("<image>", "").strip()
        rows.append({"prompt": question, "images": f"{i}.png", "answer": sample.answer})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def teach(data: Path, out: Path, *more: object):
    return in_process("teach", data, "--local", "tiny", "--out", out, "--max-tokens", 120, *more)


def test_the_tiny_model_teaches(data, tmp_path):
    out = tmp_path / "taught.jsonl"
    done = teach(data, out, "--num", 2, "--keep-right", "--batch", 5)
    assert done.returncode == 0, done.stdout + done.stderr
    samples = list(load_samples(out))
    replies = [r["reply"] for r in read_jsonl(journal_path(out)) if "reply" in r]
    kept = [reply for reply in replies if reply["kind"] == "kept"]
    # its accuracy is 0.88, and each completion has three tries
    assert len(samples) >= NUM - 2 and len(kept) >= 2 * NUM - 4
    assert all(s.teacher_parts.answer == s.answer for s in samples)
    assert check(out).ok
    assert {text for s in samples for text in s.teachers} == {reply["text"] for reply in kept}
    assert all(0 < r["completion_tokens"] <= 120 and r["prompt_tokens"] > 20 for r in replies)
    stored = journal_path(out).read_bytes(), out.read_bytes()
    again = teach(data, out, "--num", 2, "--keep-right", "--batch", 3)
    assert again.returncode == 0 and (journal_path(out).read_bytes(), out.read_bytes()) == stored


def test_replies_that_are_cut_off_and_prompts_that_are_too_long(data, tmp_path):
    rows = read_jsonl(data)[:3]
    rows[1]["prompt"] = "Is it? " * 2000
    path = data.with_name("long.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "taught.jsonl"
    done = teach(path, out, "--max-tokens", 6, "--tries", 2)
    assert done.returncode == 1 and not out.read_text()
    ends = {
        r["place"]: (r["end"], r["reason"]) for r in read_jsonl(journal_path(out)) if "end" in r
    }
    assert ends["long.jsonl, line 1"][0] == ends["long.jsonl, line 3"][0] == "malformed"
    assert ends["long.jsonl, line 2"][0] == "failed" and "tokens" in ends["long.jsonl, line 2"][1]
    replies = [r for r in read_jsonl(journal_path(out)) if "reply" in r]
    assert len(replies) == 4, "asked again once"
    cut = "it was cut off at the length limit; be shorter"
    assert [r["reply"]["reason"] for r in replies[:2]] == [cut, cut], "both rows at the same time"
    first, second = (r["reply"]["prompt_tokens"] for r in replies if r["key"] == replies[0]["key"])
    assert second > first + 6, "the second prompt has the first reply and what is wrong with it"


@pytest.mark.slow
def test_a_larger_teacher_is_planned_for_a_card(data, tmp_path):
    """Qwen3-VL-8B in NF4 alone on 12 GiB: predicted, and no file is written."""
    out = tmp_path / "taught.jsonl"
    done = in_process(
        "teach", data, "--local", "Qwen/Qwen3-VL-8B-Instruct", "--out", out, "--dry-run", "--card", 12
    )  # fmt: skip
    text = " ".join(done.stdout.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fits a card of 12 GiB: peak" in text and "predicted" in text
    peak = float(text.partition("peak ")[2].split()[0])
    # 8.19 B parameters of language model and tower: 36 layers in 4 bit, embeddings and head in 16 bit
    assert 6.5 < peak < 10.8
    assert not list(tmp_path.iterdir())
    check_refused(
        in_process("teach", data, "--local", "tiny", "--out", out, "--card", 12), "--dry-run"
    )
