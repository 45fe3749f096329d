"""The stored study: the room that `prism-lite run` prints, and its place in the package."""

from __future__ import annotations

import re

import pytest

from prism_lite.files import read_json
from prism_lite.recipe import load_recipe
from prism_lite.study.measured import MEASURED, room_of


def test_the_room_is_the_mean_of_the_oracle_arm():
    sentence = room_of(load_recipe("tiny", ["seed=4", "eval.every=5"]))
    assert sentence is not None
    seeds = read_json(MEASURED)["arms"]["oracle"]["seeds"].values()
    for name, title in (("accuracy", "accuracy"), ("caption_accuracy", "caption accuracy")):
        mean = sum(figures[name] for figures in seeds) / len(seeds)
        stated = re.search(rf"(?<!\w ){title} (\d\.\d\d)", sentence)
        assert stated and float(stated[1]) == pytest.approx(mean, abs=0.006)
    assert f"{len(seeds)} seeds" in sentence


@pytest.mark.parametrize("change", ["rlvr.steps=31", "data.digits.teacher_slip_rate=0.25"])
def test_other_settings_have_no_measured_room(change):
    assert room_of(load_recipe("tiny", [change])) is None


@pytest.mark.parametrize(
    ("name", "arms"),
    [
        ("tiny", {"none", "frozen", "game-both", "sft-30", "dpo"}),
        ("tiny-more-arms", {"game-both", "game-on", "one-expert", "oracle"}),
        (
            "tiny-other-arms",
            {"none", "game-both", "adversarial", "free", "sft-10", "best-of-n", "mixed", "base"},
        ),
        ("tiny-erring-teacher", {"game-both", "game-on", "sft-10", "sft-30", "dpo"}),
        ("tiny-drift", {"none", "game-both"}),
        ("tiny-erring-rate", {"game-on", "sft-30"}),
        ("tiny-tuned", {"none", "game-both", "sft-30", "dpo", "frozen"}),
    ],
)
def test_the_stored_studies_are_small_and_say_how_to_make_them_again(name, arms):
    file = MEASURED.with_name(f"{name}.json")
    assert file.stat().st_size < 300_000
    study = read_json(file)
    assert study["command"].startswith("prism-lite study --recipe tiny --arms ")
    for cell in study.get("cells", {"": study}).values():
        assert cell["arms"].keys() == arms
