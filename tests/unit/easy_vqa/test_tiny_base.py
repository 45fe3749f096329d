"""The tiny base of easy-VQA: its lessons, its pictures, a shortened one and its recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image

from prism_lite import load_recipe
from prism_lite.digits import tiny_qwen
from prism_lite.digits.lessons import DESCRIBE, INSTRUCTION
from prism_lite.easy_vqa import base_model, wording
from prism_lite.easy_vqa.facts import COLORS, SHAPES, read_question
from prism_lite.easy_vqa.lessons import Lessons
from prism_lite.easy_vqa.rows import Rates, read_items
from prism_lite.parts import parse
from tests.pipeline.commands import in_process

SMALL = dataclasses.replace(base_model.CONFIG, vision_steps=1, steps=1, batch_size=2)


def test_lessons_misread_in_answers_only(package):
    lessons, rng = Lessons(read_items("train")[0], misread_rate=1.0), Random(0)
    kinds = set()
    for _ in range(400):
        lesson = lessons.draw(rng)
        assert len(set(lesson.replies)) == len(lesson.replies)
        if lesson.question == DESCRIBE:
            seen = lessons.items[lesson.picture[0]].seen
            captions = [reply[len("<caption>") : -len("</caption>")] for reply in lesson.replies]
            assert all(wording.stated(caption) == seen for caption in captions)
            kinds.add("describe")
        elif not lesson.picture:
            caption, _, text = lesson.question.rpartition("\n")
            seen = wording.stated(caption)
            parts = [parse(f"<caption>{caption}</caption>{reply}") for reply in lesson.replies]
            assert all(wording.verify(read_question(text), seen, p).think for p in parts)
            kinds.add("given")
        elif "<think>" in lesson.replies[0]:
            item = lessons.items[lesson.picture[0]]
            read = wording.misread(item.question, item.seen)
            verdicts = [wording.verify(item.question, read, parse(r)) for r in lesson.replies]
            assert all(v.caption and v.think and v.answer for v in verdicts)
            assert lesson.system == INSTRUCTION
            kinds.add("misread" if read != item.seen else "read")
        else:
            assert lesson.replies == (lessons.items[lesson.picture[0]].answer,)
            kinds.add("short")
    assert kinds == {"describe", "given", "misread", "read", "short"}


def test_pictures_are_the_image_processors(package):
    lessons = Lessons(read_items("train")[0], misread_rate=0.9)
    tokenizer = base_model.build_tokenizer(lessons, SMALL)
    assert all(len(tokenizer(f" {word}")["input_ids"]) == 1 for word in (*COLORS, *SHAPES))
    processor = tiny_qwen.build_processor(tokenizer).image_processor
    for index in (0, 20):
        image = lessons.pixels[index]
        expected = processor(images=[Image.fromarray(image)], return_tensors="pt")
        assert expected["image_grid_thw"].tolist() == [[1, 4, 4]], "four visual tokens"
        pixels = base_model.picture_pixels(image)
        torch.testing.assert_close(pixels, expected["pixel_values"], atol=1e-5, rtol=0)


def test_turned_pictures_are_the_eight_symmetries():
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    turned = {base_model._turned(image, symmetry).tobytes() for symmetry in range(8)}
    assert len(turned) == 8
    assert image.tobytes() in turned and image[::-1].tobytes() in turned
    assert image.transpose(1, 0, 2).tobytes() in turned


def test_a_shortened_base_is_cached_and_its_recipe_trains_on_the_files(
    package, tmp_path, monkeypatch
):
    monkeypatch.setenv("PRISM_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(base_model, "CONFIG", SMALL)
    done = in_process("data", "easy-vqa", "--out", tmp_path / "easy", "--tiny")
    assert done.returncode == 0, done.stderr
    base = base_model.easy_vqa_base(Rates(), SMALL)
    assert base.parent == tmp_path / "cache"
    trained_s = (base / "model.safetensors").stat().st_mtime_ns
    recipe = tmp_path / "easy" / "tiny.yaml"
    assert f"prism-lite run --recipe {recipe}" in done.stdout
    config = load_recipe(str(recipe))
    assert config.model.name == str(base)
    assert Path(config.data.train.partition("#")[0]).is_file()
    assert config.data.heldout == f"{tmp_path}/easy/heldout.jsonl#512"
    assert base_model.easy_vqa_base(Rates(), SMALL) == base
    assert (base / "model.safetensors").stat().st_mtime_ns == trained_s, "not trained again"

    out = tmp_path / "run"
    small = ["sft.steps=1", "sft.batch_size=2", "eval.num_samples=1", "eval.num_prompts=20"]
    small += ["sampling.max_completion_tokens=48", "lora.rank=4"]  # the texts have up to 36
    run = in_process(
        "sft", "--recipe", recipe, "--out", out, *small
    )  # its replies are not well-formed yet
    assert run.returncode == 0, run.stdout + run.stderr
    figures = in_process("figures", "--run", out, "--by", "kind", "--json", tmp_path / "f.json")
    assert figures.returncode == 0, figures.stderr
    for word in ("base", "sft", "yes/no", "other", "captions", "thinks"):
        assert word in figures.stdout
    assert "column" in in_process("figures", "--run", out, "--by", "color2").stderr


def test_other_rates_and_settings_have_a_base_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("PRISM_LITE_CACHE", str(tmp_path))
    monkeypatch.setattr(base_model.train_base, "trained_folder", lambda folder, *_, **__: folder)
    folders = {
        base_model.easy_vqa_base(Rates(misread=0.9), SMALL),
        base_model.easy_vqa_base(Rates(misread=0.9, slip=0.5), SMALL),
        base_model.easy_vqa_base(Rates(misread=0.5), SMALL),
        base_model.easy_vqa_base(Rates(), dataclasses.replace(SMALL, steps=7)),
    }
    assert len(folders) == 3, "slips are not in the lessons"
