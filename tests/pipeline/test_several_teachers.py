"""Alignment, its baselines, the warm-up and RLVR's game use all teacher completions of a row."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest
import torch

from prism_lite.data.task import TaskData, load_task
from prism_lite.models.backbone import Backbone
from prism_lite.parts import Parts
from prism_lite.stages import align, rlvr, warmup
from prism_lite.stages.align import Replay, run_align
from prism_lite.stages.dpo import run_dpo
from prism_lite.stages.read_prompts import read_prompts
from prism_lite.stages.rlvr import run_rlvr
from prism_lite.stages.sft import run_teacher_sft
from prism_lite.stages.warmup import run_warmup
from prism_lite.types import Group, Rollout
from tests.file_rows import completion, files_recipe, make_rows, write_rows
from tests.micro import micro_recipe, quiet_console

NUM_ROWS = 4  # two steps make an epoch


@pytest.fixture
def task(micro_cache) -> TaskData:
    """The micro task with a second teacher completion in each row."""
    task = load_task(micro_recipe())

    def with_second(sample):
        second = sample.teacher.replace("<caption>", "<caption>second ")
        return dataclasses.replace(sample, other_teachers=(second,))

    align_rows, rlvr_rows = (tuple(map(with_second, rows)) for rows in (task.align, task.rlvr))
    return dataclasses.replace(task, align=align_rows, rlvr=rlvr_rows[:NUM_ROWS])


@pytest.fixture
def few_rows(task, monkeypatch):
    """The same rows, fewer of them for alignment."""
    rows = task.align[:NUM_ROWS]
    object.__setattr__(task, "align", rows)
    return rows


def is_second(text: str) -> bool:
    return "second " in text


def spied(monkeypatch, module) -> Counter[bool]:
    """How often `judge_rollouts` of a stage got the first and the second teacher."""
    judged: Counter[bool] = Counter()
    judge = module.judge_rollouts

    def spy(context, discriminator, optimizer, groups, **more):
        judged.update(is_second(group.sample.teacher_parts.caption) for group in groups)
        return judge(context, discriminator, optimizer, groups, **more)

    monkeypatch.setattr(module, "judge_rollouts", spy)
    return judged


def test_alignment_judges_against_each(play, few_rows, monkeypatch):
    judged = spied(monkeypatch, align)
    play(run_align, align__steps=4)
    assert judged == {False: 4, True: 4}


def test_the_game_in_rlvr_uses_each(play, few_rows, monkeypatch):
    judged = spied(monkeypatch, rlvr)
    play(run_rlvr, rlvr__game="on", rlvr__steps=4)
    assert judged == {False: 4, True: 4}


@pytest.mark.parametrize("run", [run_dpo, run_teacher_sft])
def test_baselines_use_each(play, few_rows, monkeypatch, run):
    texts: list[str] = []
    tokenize = Backbone.tokenize

    def spy(self, text, **more):
        texts.append(text)
        return tokenize(self, text, **more)

    monkeypatch.setattr(Backbone, "tokenize", spy)
    play(run, align__steps=4)
    assert Counter(map(is_second, texts)) == {False: 4, True: 4}
    assert len(set(texts)) == 2 * NUM_ROWS


def test_the_warm_up_trains_on_each(play, monkeypatch):
    seen: Counter[tuple[str, bool]] = Counter()
    step = warmup.add_negatives

    def spy(groups, *arguments, **more):
        seen.update((g.sample.key, is_second(g.sample.teacher)) for g in groups)
        return step(groups, *arguments, **more)

    monkeypatch.setattr(warmup, "add_negatives", spy)
    play(run_warmup, warmup__steps=12)
    keys = {key for key, _ in seen}
    both = [key for key in keys if seen[key, False] and seen[key, True]]
    assert len(both) == len(keys) > 4, "each prompt was judged against both"


def test_replay_keeps_which_one(task):
    first, other = task.align[0], task.align[1]
    rollout = Rollout((1,), "", Parts("c", "t", "a"), "end", torch.zeros(1), torch.zeros(1))
    replay, again = (Replay(task.align, num_prompts=4) for _ in range(2))
    for sample in (first, first.with_teacher(1), other.with_teacher(1)):
        replay.add([Group(sample, (rollout,))])
    again.load(json.loads(json.dumps(replay.state())))
    kept = [(sample.key, is_second(sample.teacher or "")) for sample, _ in again._kept]
    assert kept == [(first.key, False), (first.key, True), (other.key, True)]
    assert again.state() == replay.state()


def test_the_longest_one_must_fit_a_pack(backbone, tmp_path):
    rows = make_rows(tmp_path, 5)
    rows[3]["teacher"] = [rows[3]["teacher"], completion("2,7", think="so " * 300)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    config = files_recipe(path, model__max_pack_tokens=700, align__method="sft")
    backbone.config = config.model
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 4: .*its teacher completion \d+"):
        read_prompts(config, backbone, load_task(config), quiet_console())
