"""The gate before alignment, with intervals from scipy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from scipy import stats

from prism_lite.stages import gate
from prism_lite.stages.preflight import check_stages
from tests.micro import micro_recipe, quiet_console

LEARNED, KNOWN, NOT = "learned", "known before training", "not judged"


@pytest.mark.parametrize(
    ("untrained", "trained", "verdict"),
    [
        (0.31, 0.96, LEARNED),
        (0.50, 0.70, LEARNED),
        (0.93, 0.94, KNOWN),
        (0.90, 0.85, KNOWN),
        (0.95, 0.40, NOT),  # it was known and is forgotten
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


def check(monkeypatch, untrained, trained, *, setting="stop", num_pairs=200) -> str:
    """Run the gate on figures (perception, reasoning), and return what it prints."""
    channels = ("perception", "reasoning")
    probe = {f"disc/grounding_{c}": v for c, v in zip(channels, trained, strict=True)}
    monkeypatch.setattr(gate, "grounding_probe", lambda *_: probe if num_pairs else {})
    names = [f"disc/grounding_{c}_untrained" for c in channels]
    lines = [{"step": 3}, dict(zip(names, untrained, strict=True)) if untrained else {}]
    console = quiet_console()
    context = SimpleNamespace(
        backbone=None,
        config=micro_recipe(align__gate=setting),
        task=SimpleNamespace(probe=(None,) * num_pairs),
        run=SimpleNamespace(console=console, metrics=lambda stage: lines, path=Path("nowhere")),
    )
    gate.check_gate(context, None)  # type: ignore[arg-type]
    return " ".join(console.file.getvalue().split())


def test_one_channel_is_enough_and_both_are_named(monkeypatch):
    text = check(monkeypatch, (0.31, 0.5), (0.96, 0.52))
    assert "perception: learned (0.31 untrained -> 0.96)" in text
    assert "reasoning: not judged (0.50 untrained -> 0.52)" in text
    text = check(monkeypatch, (0.5, 0.93), (0.5, 0.94))
    assert "reasoning: known before training (0.93 untrained -> 0.94)" in text


@pytest.mark.parametrize("untrained", [(0.5, 0.5), None])
def test_without_any_it_stops_and_says_what_to_do_or_warns(monkeypatch, untrained):
    with pytest.raises(ValueError, match=r"-> 0\.52.*warmup\.steps.*align\.gate=warn") as raised:
        check(monkeypatch, untrained, (0.52, 0.51))
    assert "perception: not judged" in str(raised.value)
    text = check(monkeypatch, untrained, (0.52, 0.51), setting="warn")
    assert "warning: the discriminator does not judge content on either channel" in text


def test_without_a_probe_it_stops_or_warns(monkeypatch, task, tmp_path):
    with pytest.raises(ValueError, match=r"at least 20 rows.*align\.gate=warn"):
        check(monkeypatch, None, (0.9, 0.9), num_pairs=0)
    assert "no held-out pairs" in check(monkeypatch, None, (0.9, 0.9), setting="warn", num_pairs=0)
    bare = dataclasses.replace(task, probe=())
    stages = ("sft", "warmup", "align")
    with pytest.raises(ValueError, match=r"at least 20 rows.*align\.gate=warn"):
        check_stages(micro_recipe(align__gate="stop"), tmp_path, stages, bare)
    check_stages(micro_recipe(align__gate="warn"), tmp_path, stages, bare)
    check_stages(micro_recipe(align__gate="stop", align__method="dpo"), tmp_path, stages, bare)
