"""The game of alignment: what is shown of each step, and the shares of the tokens."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from demo.models.model import Model
from demo.models.shares import rows_with_shares
from demo.record import write_game
from demo.runs import folder, game, samples
from demo.screens.game import game_html
from prism_lite.models.packing import Tree, pack_trees
from prism_lite.parts import Parts, parse

RECORDED = folder.read_lines(folder.SAMPLE_RUN / "demo" / "game.jsonl")
HOSTILE = '<img src=x onerror="window.pwned=1">'


@pytest.fixture(scope="module")
def model(live_home: Path) -> Model:
    return Model(live_home)


def pair_of(model: Model) -> tuple[Any, list[Parts], list[dict[str, Any]]]:
    """Return a sample, teacher and student, and their rows."""
    sample = model.task.align[0]
    rollout = next(
        r
        for seed in range(20)
        for r in model.rollouts("align", [sample], seed=seed, temperature=1.0)
        if r.is_well_formed
    )
    assert isinstance(rollout.parts, Parts)
    completions = [sample.teacher_parts, rollout.parts]
    discriminator = model._loaded_discriminator("align")
    return sample, completions, rows_with_shares(model.backbone, discriminator, sample, completions)


def scores_of(model: Model, sample: Any, completions: list[Parts]) -> list[tuple[float, float]]:
    with torch.no_grad(), model.backbone.role("discriminator"):
        scores = model._loaded_discriminator("align").score(
            model.backbone, [(model.backbone.prompt(sample), completions)]
        )
    return list(zip(scores.perception_K.tolist(), scores.reasoning_K.tolist(), strict=True))


def test_shares_are_what_a_part_loses_with_the_other_token(model: Model) -> None:
    """Each replaced completion, as text, scored by itself beside the teacher."""
    sample, completions, rows = pair_of(model)
    scores = scores_of(model, sample, completions)
    num_checked = 0
    for parts, row, (perception, reasoning) in zip(completions, rows, scores, strict=True):
        assert (row["perception"], row["reasoning"]) == pytest.approx(
            (perception, reasoning), abs=1e-3
        )
        for channel, name in enumerate(game.CHANNELS):
            tokens = row["tokens"][name]
            text = parts.perception if name == "perception" else parts.reasoning
            assert "".join(t[0] for t in tokens).strip() == text.strip()
            for place, (_, share, _, other) in enumerate(tokens):
                if share is None:
                    continue
                changed = [t[0] for t in tokens]
                changed[place] = other
                before = "" if name == "perception" else f"{parts.perception}\n"
                after = f"\n{parts.reasoning}" if name == "perception" else ""
                other_parts = parse(f"{before}{''.join(changed)}{after}")
                if not isinstance(other_parts, Parts):
                    continue  # the other token breaks the tags, which this reference cannot spell
                if not _has_tokens(model, other_parts, channel, changed):
                    continue  # spelled alike, cut into other tokens
                _, replaced = scores_of(model, sample, [completions[0], other_parts])
                assert share == pytest.approx(scores[rows.index(row)][channel] - replaced[channel],
                                              abs=2e-3)  # fmt: skip
                num_checked += 1
    assert num_checked >= 10


def _has_tokens(model: Model, parts: Parts, channel: int, texts: list[str]) -> bool:
    ids = model._loaded_discriminator("align").part_tokens(model.backbone, parts).branches[channel]
    decoded = [model.backbone.tokenizer.decode([token]) for token in ids.tolist()[:-1]]
    return decoded[-len(texts) :] == texts


def test_the_other_token_is_the_likeliest_of_the_trunk(model: Model) -> None:
    """Of a forward over prompt and part together, without stored prompt states."""
    sample, completions, rows = pair_of(model)
    backbone = model.backbone
    discriminator = model._loaded_discriminator("align")
    branches = discriminator.part_tokens(backbone, completions[1]).branches
    with torch.no_grad(), backbone.role("discriminator"):
        pack = pack_trees([Tree(backbone.prompt(sample), branches)])
        logits_NV = backbone.hidden_states(pack)[pack.predictor_N] @ backbone.head_weight.T
    ranked_NV = logits_NV.argsort(1, descending=True)
    tokens = rows[1]["tokens"]["perception"]
    for place, (text, share, _, other) in enumerate(tokens):
        best, second = (backbone.tokenizer.decode([int(i)]) for i in ranked_NV[place][:2])
        if share is not None:
            assert other == (second if best == text else best)


def test_opening_tags_have_no_share_and_experts_stay_in_their_half(model: Model) -> None:
    _, _, rows = pair_of(model)
    for row in rows:
        for name, tag, experts in (
            ("perception", "<caption>", {0, 1}),
            ("reasoning", "<think>", {2, 3}),
        ):
            tokens = row["tokens"][name]
            without = "".join(text for text, share, *_ in tokens if share is None)
            assert without == tag
            assert {expert for *_, expert, _ in tokens} <= experts


def test_the_recorded_steps_are_as_they_were_logged() -> None:
    steps = [step["step"] for step in RECORDED]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1], len(steps)) == (0, 29, game.MAX_STEPS)
    num_compared = 0
    for step in RECORDED:
        logged = game.logged_step(folder.SAMPLE_RUN, step["step"])
        if logged is not None:  # the rollouts of this step are in the recording
            assert logged["sample"].items() <= step["sample"].items()
            assert logged["teacher"].items() <= step["teacher"].items()
            num_compared += 1
    assert num_compared >= 2


def test_the_recorded_needles_begin_above_one_half_and_approach_it() -> None:
    accuracies = game.pair_accuracies(folder.SAMPLE_RUN)
    for name in game.CHANNELS:
        assert sorted(accuracies[name]) == list(range(30))
        first, last = (
            sum(accuracies[name][step] for step in steps) / 5 for steps in (range(5), range(25, 30))
        )
        assert first > last >= 0.4


def test_a_misread_digit_has_the_lowest_share_of_the_digits() -> None:
    """Of the recorded captions with one misread digit; by chance it would be one of four or five."""
    is_lowest = []
    for step in RECORDED:
        row = step["sample"]
        parts = parse(row["completion"])
        sample = samples.sample_by_id(folder.SAMPLE_RUN, step["prompt_id"])
        assert sample is not None and isinstance(parts, Parts)
        truth: Any = sample.facts
        digits = [
            (share, int(text)) for text, share, *_ in row["tokens"]["perception"] if text.isdigit()
        ]
        if len(digits) != len(truth.digits):
            continue
        wrong = [i for i, (d, t) in enumerate(zip(digits, truth.digits, strict=True)) if d[1] != t]
        if len(wrong) == 1:
            is_lowest.append(min(digits) == digits[wrong[0]])
    assert len(is_lowest) >= 4
    assert all(is_lowest)


def test_the_page_escapes_tokens_and_hides_all_steps_but_the_first(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder.SAMPLE_RUN, run)
    steps = json.loads(json.dumps(RECORDED))
    steps[0]["sample"]["tokens"]["perception"][0][0] = HOSTILE
    steps[1]["sample"] = {
        "completion": HOSTILE,
        "finish_reason": "end",
        "advantage": -1.5,
        "logged": {},
    }
    accuracies = {"perception": {0: 1.0, 2: 0.25}, "reasoning": {2: 0.5}}
    page = game_html(run, steps, accuracies)
    assert "<img src=x" not in page
    assert page.count("&lt;img src=x") == 2
    assert page.count("<section") == len(steps)
    assert page.count('<section class="game-step" hidden>') == len(steps) - 1
    assert "Malformed, so not scored; advantage -1.50." in page
    perception, reasoning = page.split('<div class="needle')[2:]
    assert "rotate(90.0deg)" in perception  # 1 is to the right
    assert "not logged" in reasoning
    values = [json.loads(v) for v in re.findall(r'data-values="([^"]+)"', page)]
    assert values[0][:3] == [1.0, 0.25, None]
    assert values[1][:3] == [None, 0.5, None]


def test_an_own_run_gets_what_the_recording_has(
    model: Model, live_home: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(live_home, run)
    before = game.steps_of(run)
    assert [step["step"] for step in before] == list(range(5))
    assert not game.has_shares(before)
    assert "strip" not in game_html(run, before, game.pair_accuracies(run))
    write_game(model, live_home, run)
    after = game.steps_of(run)
    assert game.has_shares(after)
    assert [set(step) for step in after] == [set(RECORDED[0])] * 5
    assert set(after[0]["teacher"]) == set(RECORDED[0]["teacher"])
    assert 'class="strip"' in game_html(run, after, game.pair_accuracies(run))


def test_a_run_without_a_discriminator_has_no_game(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "rollouts").mkdir(parents=True)
    shutil.copy(folder.SAMPLE_RUN / "config.yaml", run)
    record = json.loads(
        (folder.SAMPLE_RUN / "rollouts" / "align-0.jsonl").read_text().split("\n")[0]
    )
    del record["scores"]
    (run / "rollouts" / "align-0.jsonl").write_text(json.dumps(record) + "\n")
    assert game.steps_of(run) == []
    assert game_html(run, [], game.pair_accuracies(run)) == ""
