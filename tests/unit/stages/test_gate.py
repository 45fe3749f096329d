"""The gate before alignment, with intervals from scipy."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from scipy import stats

from prism_lite.stages import gate
from prism_lite.stages.preflight import check_stages
from tests.micro import micro_recipe, quiet_console

LEARNED, KNOWN, NOT, LOST = "learned", "known before training", "not judged", "lost"


@pytest.mark.parametrize(
    ("untrained", "trained", "verdict"),
    [
        (0.31, 0.96, LEARNED),
        (0.50, 0.70, LEARNED),
        (0.93, 0.94, KNOWN),
        (0.90, 0.85, KNOWN),
        (0.95, 0.40, LOST),
        (0.50, 0.52, NOT),
        (0.20, 0.50, NOT),  # better than before, but at chance
        (0.70, 0.72, NOT),  # above chance, but as before
        (None, 0.96, NOT),
    ],
)
def test_the_verdict_on_a_channel(untrained, trained, verdict):
    num = 200
    interval = stats.binomtest(round(trained * num), num).proportion_ci(0.95, method="wilson")
    half = (interval.high - interval.low) / 2
    is_above = interval.low > 0.5
    is_open = (
        untrained is not None and is_above and (untrained >= 0.9 or trained - untrained > half)
    )
    before = "unknown" if untrained is None else f"{untrained:.2f}"
    expected = f"{verdict} ({before} untrained -> {trained:.2f})"
    assert gate.judge_grounding(untrained, trained, num) == (is_open, expected)


def test_few_pairs_prove_less():
    assert gate.judge_grounding(0.5, 0.75, 200)[0]
    assert not gate.judge_grounding(0.5, 0.75, 8)[0]


def check(monkeypatch, untrained, trained, *, setting="stop", num_pairs=200, alpha=0.5) -> str:
    """Run the gate on figures (perception, reasoning), and return what it prints."""
    channels = ("perception", "reasoning")
    probe = {f"disc/grounding_{c}": v for c, v in zip(channels, trained, strict=True)}
    monkeypatch.setattr(gate, "grounding_probe", lambda *_: probe if num_pairs else {})
    names = [f"disc/grounding_{c}_untrained" for c in channels]
    lines = [{"step": 3}, dict(zip(names, untrained, strict=True)) if untrained else {}]
    console = quiet_console()
    context = SimpleNamespace(
        backbone=None,
        config=micro_recipe(align__gate=setting, align__alpha=alpha),
        task=SimpleNamespace(probe=(None,) * num_pairs, align=()),
        run=SimpleNamespace(console=console, metrics=lambda stage: lines, path=Path("nowhere")),
    )
    gate.check_gate(context, None)  # type: ignore[arg-type]
    return " ".join(console.file.getvalue().split())


@pytest.mark.parametrize(
    ("untrained", "trained"),
    [
        # make run (demo/sample_run) and the seeds of study/tiny.json with the smallest figures
        ((0.0, 0.955), (0.985, 0.875)),
        ((0.0, 0.955), (0.97, 0.875)),
        ((0.0, 0.955), (0.995, 0.845)),
    ],
)
def test_it_opens_where_both_channels_are_judged_and_names_them(monkeypatch, untrained, trained):
    text = check(monkeypatch, untrained, trained)
    assert f"perception: learned (0.00 untrained -> {trained[0]:.2f})" in text
    before = f"{untrained[1]:.2f}"
    assert f"reasoning: known before training ({before} untrained -> {trained[1]:.2f})" in text
    assert "warning" not in text


@pytest.mark.parametrize(
    ("untrained", "trained", "alpha", "failed", "verdict", "advice"),
    [
        # reasoning was known, and perception learned nothing: it must not pass for both
        ((0.0, 0.955), (0.03, 0.94), 0.5, "perception", "not judged (0.00 untrained -> 0.03)", 0),
        ((0.31, 0.5), (0.96, 0.52), 0.5, "reasoning", "not judged (0.50 untrained -> 0.52)", 1),
        # the erring teacher of study/tiny-erring-teacher.json, seed 5
        ((0.0, 0.955), (0.98, 0.325), 0.5, "reasoning", "lost (0.95 untrained -> 0.33)", 1),
        # alpha 1: perception has all the weight
        ((0.0, 0.955), (0.03, 0.94), 1.0, "perception", "not judged (0.00 untrained -> 0.03)", 0),
        ((0.5, 0.955), (0.5, 0.3), 0.5, "perception and reasoning", "perception: not judged", None),
    ],
)
def test_a_channel_without_judgement_stops_and_is_named(
    monkeypatch, untrained, trained, alpha, failed, verdict, advice
):
    with pytest.raises(ValueError, match=r"warmup\.steps.*align\.gate=warn") as raised:
        check(monkeypatch, untrained, trained, alpha=alpha)
    text = str(raised.value)
    assert f"does not judge the content of {failed} (" in text
    assert verdict in text
    alone = {0: "reasoning alone", 1: "perception alone"}
    if advice is None:
        assert "align.alpha" not in text
    else:
        assert f"rely on {alone[advice]}: the same command with align.alpha={advice}" in text
    warned = check(monkeypatch, untrained, trained, alpha=alpha, setting="warn")
    assert f"warning: the discriminator does not judge the content of {failed}" in warned


@pytest.mark.parametrize(
    ("trained", "alpha", "idle"),
    [((0.98, 0.325), 1.0, "reasoning"), ((0.03, 0.94), 0.0, "perception")],
)
def test_a_channel_without_weight_does_not_close_it(monkeypatch, trained, alpha, idle):
    text = check(monkeypatch, (0.0, 0.955), trained, alpha=alpha)
    assert "warning" not in text
    assert re.search(rf"{idle}: [^:]*, without weight", text)
    assert text.count("without weight") == 1


def test_without_an_untrained_probe_nothing_is_judged(monkeypatch):
    with pytest.raises(ValueError, match=r"of perception and reasoning .*unknown untrained"):
        check(monkeypatch, None, (0.96, 0.94))


def test_without_a_probe_it_stops_or_warns(monkeypatch, task, tmp_path):
    with pytest.raises(ValueError, match=r"at least 20 rows.*align\.gate=warn"):
        check(monkeypatch, None, (0.9, 0.9), num_pairs=0)
    for num_pairs in (0, 3):  # of three pairs not even three right ones are above chance
        text = check(monkeypatch, (0.5, 0.5), (1.0, 1.0), setting="warn", num_pairs=num_pairs)
        assert "no held-out pairs" in text and "warmup.steps" not in text
    assert "learned" in check(monkeypatch, (0.5, 0.5), (1.0, 1.0), num_pairs=4)
    bare = dataclasses.replace(task, probe=())
    stages = ("sft", "warmup", "align")
    with pytest.raises(ValueError, match=r"at least 20 rows.*align\.gate=warn"):
        check_stages(micro_recipe(align__gate="stop"), tmp_path, stages, bare)
    few = dataclasses.replace(task, probe=task.probe[:3])
    with pytest.raises(ValueError, match=r"16 rows .* 16 different pictures .*align\.gate=warn"):
        check_stages(micro_recipe(align__gate="stop"), tmp_path, stages, few)
    check_stages(micro_recipe(align__gate="warn"), tmp_path, stages, bare)
    check_stages(micro_recipe(align__gate="stop", align__method="dpo"), tmp_path, stages, bare)
