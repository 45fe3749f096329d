"""RLVR with the game kept on, its controls, and RLVR alone beside it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import pytest
import torch

from prism_lite import pipeline
from prism_lite.config import RunConfig
from prism_lite.config.checks import check_across_fields
from prism_lite.discriminator.step import GameScores
from prism_lite.files import read_json, read_jsonl
from prism_lite.parts import Malformed, Parts
from prism_lite.recipe import load_recipe
from prism_lite.runs.checkpoint import load_final
from prism_lite.stages import align, gate, rlvr
from prism_lite.stages.context import Context
from prism_lite.stages.game import JudgedRollouts, RunningSpread, auc_within_groups
from prism_lite.stages.rollout_batch import RolloutBatch
from prism_lite.types import Group, Rollout, Sample, Turn
from tests.micro import micro_recipe, quiet_console

GAME = {"rlvr__game": "on", "rlvr__control": True, "align__gate": "warn"}


@pytest.fixture(scope="module")
def game_run(micro_run, tmp_path_factory):
    """The micro run's SFT and warm-up, then alignment, RLVR alone, and RLVR with the game kept on."""
    _, finished, _, _ = micro_run
    folder = tmp_path_factory.mktemp("game") / "run"
    shutil.copytree(finished, folder)
    for stage in ("align", "rlvr"):
        shutil.rmtree(folder / "stages" / stage)
    config = micro_recipe(**GAME)
    results = read_json(folder / "results.json")
    for stage in ("align", "rlvr"):
        results["stages"].pop(stage)
    (folder / "results.json").write_text(json.dumps(results))
    kept = [m for m in read_jsonl(folder / "metrics.jsonl") if m["stage"] in ("sft", "warmup")]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in kept))
    return config, folder, pipeline.run(config, folder, console=quiet_console())


def test_the_discriminator_learns_during_rlvr_and_is_saved(game_run):
    _, folder, results = game_run
    assert list(results["stages"]) == ["base", "sft", "control", "align", "rlvr"]
    before, after = (load_final(folder / "stages" / s)["discriminator"] for s in ("align", "rlvr"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    lines = [m for m in read_jsonl(folder / "metrics.jsonl") if m["stage"] == "rlvr"]
    assert all("disc/pair_accuracy_perception" in line for line in lines)
    assert "disc/grounding_perception" in lines[0]
    records = read_jsonl(folder / "rollouts" / "rlvr-0.jsonl")
    assert any("perception_score" in record.get("scores", {}) for record in records)


def test_rlvr_alone_begins_at_sft_with_as_many_rollouts_and_no_discriminator(game_run):
    config, folder, _ = game_run
    lines = [m for m in read_jsonl(folder / "metrics.jsonl") if m["stage"] == "control"]
    rollouts = config.align.steps * config.align.prompts_per_step * config.align.group_size
    rollouts += config.rlvr.steps * config.rlvr.prompts_per_step * config.rlvr.group_size
    per_step = config.rlvr.prompts_per_step * config.rlvr.group_size
    assert len(lines) == -(-rollouts // per_step)
    assert not any(name.startswith("disc/") for line in lines for name in line)
    assert set(load_final(folder / "stages" / "control")) == {"policy"}
    policy = load_final(folder / "stages" / "rlvr")["policy"]
    assert any(
        not torch.equal(policy[name], value)
        for name, value in load_final(folder / "stages" / "control")["policy"].items()
    )


def test_an_sft_policy_without_the_format_stops_a_run_before_rlvr_alone(tmp_path):
    """Where the warm-up finds no well-formed sample, RLVR alone would train on rewards of 0."""
    config = micro_recipe(
        sft__steps=1, sft__optim__learning_rate=1.0, rlvr__control=True, eval__stages=[]
    )
    with pytest.raises(
        ValueError, match=r"only \d+ of \d+ samples of the SFT policy are well-formed"
    ):
        pipeline.run(config, tmp_path / "run", console=quiet_console())
    assert sorted(path.name for path in (tmp_path / "run" / "stages").iterdir()) == ["sft"]


@pytest.mark.parametrize("stage", ["control", "rlvr"])
def test_both_resume_to_the_same_bytes(game_run, tmp_path, stage):
    config, finished, _ = game_run
    folder = tmp_path / "r"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "stages" / stage / "final")
    results = read_json(folder / "results.json")
    del results["stages"][stage]
    (folder / "results.json").write_text(json.dumps(results))
    pipeline.run(config, folder, console=quiet_console())
    expected, got = (load_final(path / "stages" / stage) for path in (finished, folder))
    for role, tensors in expected.items():
        for name, value in tensors.items():
            assert torch.equal(value, got[role][name]), (role, name)
    figures = [read_json(path / "results.json")["stages"][stage] for path in (finished, folder)]
    for of_run in figures:
        del of_run["seconds"]
    assert figures[0] == figures[1]


def rollout(answer: str | None) -> Rollout:
    parts = Malformed("test") if answer is None else Parts("- c", "t", answer)
    text = "" if answer is None else parts.render()
    return Rollout((1,), text, parts, "end", torch.zeros(1), torch.zeros(1))


def batch_of(*groups: list[str | None]) -> RolloutBatch:
    sample = Sample("s", (Turn("user", "q"),), answer="1")
    made = [Group(sample, tuple(map(rollout, answers))) for answers in groups]
    accuracy = [float(a == "1") for answers in groups for a in answers]
    return RolloutBatch(
        made, {"accuracy": torch.tensor(accuracy)}, torch.ones(len(made), dtype=torch.bool)
    )


def judged_of(batch: RolloutBatch, score_R: torch.Tensor) -> JudgedRollouts:
    well_formed_R = torch.tensor([r.is_well_formed for g in batch.groups for r in g.rollouts])
    return JudgedRollouts(score_R, score_R, well_formed_R, GameScores.empty())


def advantages(game: str, usual: float) -> torch.Tensor:
    """A mixed group with a malformed rollout, and a group that is all right."""
    batch = batch_of(["1", "2", "1", None], ["1", "1", "1", "1"])
    score_R = torch.tensor([3.0, 1.0, 2.0, 9.0, 4.0, 2.0, 4.0, 2.0])
    config = load_recipe("tiny", [f"rlvr.game={game}", "rlvr.group_size=4", "align.weight=2"])
    context = Context(config, None, None, None)  # type: ignore[arg-type]
    return rlvr._game_advantages(context, batch, judged_of(batch, score_R), (usual, usual))


def test_on_counts_right_rollouts_by_hand():
    """Mixed group: z over 3, 1, 2 (mean 2, deviation sqrt(2/3)), wrong and malformed left out, centred."""
    z = 1 / (2 / 3) ** 0.5
    first = torch.tensor([2 * z, 0.0, 0.0, 0.0])
    expected = torch.cat([first - first.mean(), 2 * torch.tensor([1.0, -1.0, 1.0, -1.0])])
    torch.testing.assert_close(advantages("on", 0.0), expected)


def test_blind_counts_groups_without_spread_only_and_the_floor_holds():
    expected = torch.cat([torch.zeros(4), 2 * torch.tensor([0.5, -0.5, 0.5, -0.5])])
    torch.testing.assert_close(advantages("blind", 2.0), expected)


def test_running_spread_is_a_moving_mean_over_steps_and_resumes():
    spread, batch = RunningSpread(1.0), batch_of(["1", "1", None], ["1", None, None])
    first = judged_of(batch, torch.tensor([0.0, 2.0, 9.0, 5.0, 9.0, 9.0]))
    assert spread.floors(first, group_size=3) == (1.0, 1.0)  # one group with two that count
    second = judged_of(batch, torch.tensor([0.0, 6.0, 9.0, 5.0, 9.0, 9.0]))
    resumed = RunningSpread(1.0)
    resumed.load(json.loads(json.dumps(spread.state())))
    for each in (spread, resumed):
        assert each.floors(second, group_size=3) == pytest.approx((0.9 + 0.3, 0.9 + 0.3))
    nothing = judged_of(batch_of([None, None]), torch.zeros(2))
    assert RunningSpread(1.0).floors(nothing, group_size=2) == (0.0, 0.0)


@pytest.mark.parametrize("scores", ["frozen", "oracle"])
def test_controls_leave_the_discriminator_untrained(micro_run, tmp_path, scores):
    config = micro_recipe(
        rlvr__game="on", discriminator__scores=scores, warmup__steps=0, align__steps=0,
        rlvr__steps=2, sft__steps=1, eval__stages=[],
    )  # fmt: skip
    pipeline.run(config, tmp_path / "r", console=quiet_console())
    start, end = (load_final(tmp_path / "r" / "stages" / s) for s in ("warmup", "rlvr"))
    for name, value in start["discriminator"].items():
        assert torch.equal(value, end["discriminator"][name])
    records = read_jsonl(tmp_path / "r" / "rollouts" / "rlvr-1.jsonl")
    scored = [r["scores"] for r in records if "scores" in r]
    if scores == "oracle":
        assert scored and all(v in (0.0, 1.0) for s in scored for v in s.values())


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rlvr": {"game": "blind", "dynamic_sampling": True}}, "rlvr.dynamic_sampling"),
        ({"data": {"task": "files"}, "discriminator": {"scores": "oracle"}}, "oracle"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, word):
    config = RunConfig()
    for section, values in changes.items():
        section_config = dataclasses.replace(getattr(config, section), **values)
        config = dataclasses.replace(config, **{section: section_config})
    with pytest.raises(ValueError, match=word):
        check_across_fields(config)


@pytest.mark.parametrize(
    ("written", "expected"), [("on", "on"), ("off", "off"), ("blind", "blind")]
)
def test_the_words_on_and_off_are_no_booleans(written, expected):
    assert load_recipe("tiny", [f"rlvr.game={written}"]).rlvr.game == expected


def test_auc_within_groups_by_hand():
    """Group 1: right 3 and 1 against wrong 2: 1 of 2 pairs. Group 2: 0.5 for a tie. Group 3: no pair."""
    score_R = torch.tensor([3.0, 1.0, 2.0, 5.0, 5.0, 9.0, 1.0, 2.0, 3.0])
    right = [True, True, False, True, False, True, True, True, True]
    counted = [True, True, True, True, True, False, True, True, True]
    auc = auc_within_groups(score_R, torch.tensor(right), torch.tensor(counted), 3)
    assert auc == pytest.approx((0.5 + 0.5) / 2)
    nothing = torch.zeros(3, dtype=torch.bool)
    assert auc_within_groups(score_R[:3], nothing, ~nothing, 1) is None


@pytest.mark.parametrize(("align_steps", "stage"), [(0, "rlvr"), (1, "align")])
def test_the_gate_is_checked_once_where_the_game_begins(tmp_path, monkeypatch, align_steps, stage):
    checked = []
    monkeypatch.setattr(rlvr, "check_gate", lambda *_: checked.append("rlvr"))
    monkeypatch.setattr(align, "check_gate", lambda *_: checked.append("align"))
    config = micro_recipe(
        rlvr__game="on", align__steps=align_steps, rlvr__steps=1, sft__steps=1, warmup__steps=1,
        eval__stages=[],
    )  # fmt: skip
    pipeline.run(config, tmp_path / "r", console=quiet_console())
    assert checked == [stage]


@pytest.mark.parametrize("align_steps", [0, 1])
def test_a_closed_gate_names_a_setting_with_which_the_same_command_continues(
    tmp_path, monkeypatch, align_steps
):
    probe = {"disc/grounding_perception": 0.0, "disc/grounding_reasoning": 1.0}
    monkeypatch.setattr(gate, "grounding_probe", lambda *_: probe)
    monkeypatch.setattr(
        gate, "untrained_grounding", lambda _: {"perception": 0.0, "reasoning": 1.0}
    )
    settings = {
        "rlvr__game": "on", "align__steps": align_steps, "rlvr__steps": 1, "sft__steps": 1,
        "warmup__steps": 1, "eval__stages": [], "align__gate": "stop",
    }  # fmt: skip
    with pytest.raises(ValueError, match="does not judge the content of perception") as raised:
        pipeline.run(micro_recipe(**settings), tmp_path / "r", console=quiet_console())
    other, alpha = re.findall(r"same command with (.*)align\.alpha=(\w+)", str(raised.value))[0]
    assert other == ("" if align_steps else "another --out and ")
    settings["align__alpha"] = float(alpha)
    folder = tmp_path / ("other" if other else "r")
    pipeline.run(micro_recipe(**settings), folder, console=quiet_console())
    steps = [m["step"] for m in read_jsonl(folder / "metrics.jsonl") if m["stage"] == "rlvr"]
    assert steps == [0]
