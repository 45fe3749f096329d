"""Files of PRISM's own shapes go through all four stages as they are."""

from __future__ import annotations

import io
import json

import datasets
import pytest

from prism_lite import parts, pipeline
from prism_lite.data.task import load_task
from prism_lite.digits import lessons, wording
from prism_lite.files import read_jsonl
from tests.micro import micro_recipe, quiet_console


@pytest.fixture
def prism_files(task, tmp_path):
    """gemini_distill (sharegpt), warmup_pairwise.jsonl, the alignment parquet and the RLVR one."""

    def picture(sample) -> bytes:
        buffer = io.BytesIO()
        sample.pictures[0].open().save(buffer, "PNG")
        return buffer.getvalue()

    def sides(sample) -> tuple[parts.Parts, parts.Parts]:
        # a teacher that never errs: rows whose teacher contradicts the gold answer are refused
        digits, facts = sample.facts.digits, sample.facts
        teacher = wording.compose(digits, facts, wording.steps(digits, facts), 0, 0)
        student = parts.parse(sample.demonstration)
        assert isinstance(student, parts.Parts)
        return teacher, student

    def chat(sample) -> dict:
        return {
            "prompt": [{"role": "user", "content": f"<image>{sample.question}"}],
            "images": [{"bytes": picture(sample), "path": None}],
            "reward_model": {"style": "rule", "ground_truth": sample.answer},
        }

    distill, warmup, align, rlvr = [], [], [], []
    for i, sample in enumerate(task.align):
        (tmp_path / f"{i}.png").write_bytes(picture(sample))
        teacher, student = sides(sample)
        turns = [
            {"from": "human", "value": f"<image>{sample.question}"},
            {"from": "gpt", "value": sample.demonstration},
        ]
        distill.append({"conversations": turns, "images": [f"{i}.png"], "system": ""})
        if student != teacher:
            warmup.append(
                {
                    "question": sample.question,
                    "image": f"{i}.png",
                    "teacher_caption": teacher.caption,
                    "teacher_cot": teacher.reasoning,
                    "student_caption": student.perception,
                    "student_cot": student.reasoning,
                }
            )
        align.append(chat(sample) | {"teacher_response": teacher.render()})
        rlvr.append(chat(sample) | {"data_source": "digits", "ability": "math"})
    for name, rows in (("distill", distill), ("warmup", warmup)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    for name, rows in (("align", align), ("rlvr", rlvr), ("heldout", rlvr[:3])):
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"{name}.parquet")
    return tmp_path, len(warmup)


def test_prism_files_go_through_all_stages(prism_files):
    folder, num_recorded = prism_files
    config = micro_recipe(
        data__task="files",
        data__train=str(folder / "distill.jsonl"),
        data__warmup=str(folder / "warmup.jsonl"),
        data__align=str(folder / "align.parquet"),
        data__rlvr=str(folder / "rlvr.parquet"),
        data__heldout=str(folder / "heldout.parquet"),
        data__system_prompt=lessons.INSTRUCTION,
        sft__steps=2,
        warmup__steps=2,
        align__steps=2,
        rlvr__steps=2,
        eval__num_samples=1,
    )
    task = load_task(config)
    assert len(task.sft) == len(task.rlvr) == 16
    assert len(task.warmup) == num_recorded > 4
    assert all(sample.teacher and sample.student for sample in task.warmup)
    console = quiet_console()
    results = pipeline.run(config, folder / "run", console=console)
    assert set(results["stages"]) == {"base", "sft", "align", "rlvr"}
    assert f"warm-up on {num_recorded} recorded pairs" in console.file.getvalue()
    lines = read_jsonl(folder / "run" / "metrics.jsonl")
    assert {m["stage"] for m in lines} == {"sft", "warmup", "align", "rlvr"}
    records = read_jsonl(folder / "run" / "rollouts" / "rlvr-0.jsonl")
    assert {record["question"] for record in records} <= {s.question for s in task.rlvr}


def test_a_broken_recorded_student_is_named_by_its_row(prism_files):
    folder, _ = prism_files
    path = folder / "warmup.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["student_cot"] = "<think>no answer"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = micro_recipe(
        data__task="files", data__train=str(folder / "distill.jsonl"), data__warmup=str(path)
    )
    with pytest.raises(ValueError, match=r"warmup\.jsonl, line 3: the student"):
        load_task(config)
