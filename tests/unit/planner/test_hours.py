"""Hours: the model's arithmetic by hand, the card's branches in simulation, calibration, the command."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from prism_lite.__main__ import main
from prism_lite.planner.architectures import architecture_of
from prism_lite.planner.cards import CARDS, Card, seconds_on
from prism_lite.planner.hours import calibration, phase_seconds, predict_hours
from prism_lite.planner.simulate_phase import Cost, Simulated
from prism_lite.planner.tracker import CATEGORIES, Peak
from prism_lite.planner.workload import PHASES, Phase
from prism_lite.recipe import load_recipe
from tests.planning import card_regions

CARD = Card("made up", 10, (8, 0), 1.0, 0.5, 1.0, kernel_us=10, host_us=100)
T4, A100 = CARDS[1], CARDS[4]


def made_phase(phase, **figures):
    return Simulated(phase, Peak(0, dict.fromkeys(CATEGORIES, 0)), **figures)


def made_phases():
    """A pack: 2 s busy, 1,000 launches. A batch of 8 rows: 1 s, then 4 ms and 100 launches a token."""
    phases = {}
    for phase in PHASES:
        figures = {"cost": Cost(1.0, 1000), "token_cost": Cost(0.004, 100), "num_rows": 8}
        if phase.work in ("judge", "train"):
            figures = {"cost": Cost(2.0, 1000), "pack_tokens": 1000, "step_tokens": 4000}
        phases[phase] = made_phase(phase, prompt_tokens=100, key_bytes=1000, **figures)
    return phases


def made_recipe(**overrides):
    return load_recipe(
        "t4-2b",
        {
            "sampling.max_completion_tokens": 200, "model.max_pack_tokens": 1000,
            "model.max_prompt_tokens": 100, "sft.steps": 10, "warmup.steps": 20,
            "warmup.num_prompts": 10, "warmup.group_size": 4, "align.steps": 30,
            "align.prompts_per_step": 2, "align.group_size": 8, "align.panel_every": 10,
            "align.panel_pairs": 16, "rlvr.steps": 40, "rlvr.prompts_per_step": 1,
            "rlvr.group_size": 8, "eval.num_prompts": 10, "eval.num_samples": 4,
            "eval.stages": ["sft", "rlvr"],
        }
        | {name.replace("__", "."): value for name, value in overrides.items()},
    )  # fmt: skip


def test_hours_are_what_the_model_says():
    """Everything by hand, for a card of 1 GB/s, 10 us a kernel and 100 us a launch."""
    found = predict_hours(made_recipe(), CARD, made_phases())
    pack = 2 * 2.0 + 2 * 1000 * 10e-6  # half of 4,000 tokens: 2 packs of 1,000
    # a fifth of rows x longest, and half a prompt for each group; 0.4 of the kernels' gaps
    token = 0.004 + (8 * 40 + 1 * 50) * 1000 / 1e9 + 0.4 * 100 * 10e-6
    batch = 1.0 + 1000 * 10e-6 + 200 * token
    assert found.step_s == pytest.approx(
        {"sft": pack, "warmup": pack, "align": 2 * batch + 2 * pack, "rlvr": batch + pack}
    )
    panel_token = token + 7 * 50 * 1000 / 1e9  # each of 8 rows has a prompt of its own
    panel = 2 * (batch + 200 * (panel_token - token)) + pack * 5 * 16 / (2 * 9) / 3
    assert found.panels * 3600 == pytest.approx(4 * panel)  # steps 0, 10, 20 and the last
    warmup_token = token + 50 * 1000 / 1e9  # groups of 4
    warmup = 20 * pack + 5 * (batch + 200 * (warmup_token - token))
    assert found.stages["warmup"] * 3600 == pytest.approx(warmup)
    assert found.stages["align"] * 3600 == pytest.approx(30 * found.step_s["align"] + 4 * panel)
    tokens = 0.5 * 10 * (100 + 4 * 200)
    kl = 0.25 * tokens / 1000 * 2.0 + 5 * 1000 * 10e-6
    evaluation = 7 * (batch + 200 * (warmup_token - token)) + kl  # 40 rows and 10
    assert found.evaluation * 3600 == pytest.approx(2 * evaluation)
    assert found.total == pytest.approx(sum(found.stages.values()) + found.evaluation)


def test_without_a_graph_the_host_decides():
    phases = made_phases()
    found = predict_hours(made_recipe(sampling__cuda_graph="never"), CARD, phases)
    batch = 1.0 + 1000 * 10e-6 + 200 * 100 * 100e-6  # 100 launches of 100 us; the card needs 6 ms
    pack = 2 * 2.0 + 2 * 1000 * 10e-6
    assert found.step_s["rlvr"] == pytest.approx(batch + pack)
    assert "no CUDA graph" in found.decoding


def test_stages_that_are_left_out_cost_nothing():
    phases = made_phases()
    found = predict_hours(made_recipe(align__method="sft", warmup__steps=20), CARD, phases)
    assert found.panels == 0 and found.stages["warmup"] == 0
    pack = 2 * 2.0 + 2 * 1000 * 10e-6
    assert found.step_s["align"] == pytest.approx(pack)
    control = predict_hours(made_recipe(rlvr__control=True), CARD, phases)
    assert control.stages["rlvr"] * 3600 == pytest.approx((40 + 30 + 40) * control.step_s["rlvr"])


def test_sessions_of_colab():
    found = predict_hours(made_recipe(), CARD, made_phases())
    for total, sessions in ((11.7, 1), (11.8, 2), (23.4, 2), (24.0, 3)):
        changed = replace(found, stages={"sft": total}, evaluation=0.0)
        assert changed.num_sessions == sessions, total


def test_a_record_of_gpu_check_scales_the_stages():
    record = {
        "card": "a card", "gib": 10.0,
        "stages": {
            "one": {"sft": {"step_s": 3.0, "predicted_s": 2.0}, "rlvr": {"error": "none"}},
            "two": {
                "sft": {"step_s": 1.0, "predicted_s": 2.0},
                "align": {"step_s": 4.0, "predicted_s": 2.0},
            },
        },
    }  # fmt: skip
    assert calibration(CARD, record) == {"sft": 1.0, "warmup": 1.5, "align": 2.0, "rlvr": 1.5}
    plain = predict_hours(made_recipe(), CARD, made_phases())
    scaled = predict_hours(made_recipe(), CARD, made_phases(), record)
    assert scaled.stages["align"] == pytest.approx(2 * plain.stages["align"])
    assert scaled.measured_on == "a card"
    with pytest.raises(ValueError, match="the plan is for 10 GiB"):
        calibration(CARD, record | {"gib": 24.0})
    with pytest.raises(ValueError, match="both step_s and predicted_s"):
        calibration(CARD, record | {"stages": {}})


def test_a_phase_as_gpu_check_runs_it():
    """One pack, or one batch of rows of full length without a graph."""
    phases, config = made_phases(), made_recipe()
    pack = phase_seconds(config, CARD, phases[Phase("align", "train")])
    assert pack == pytest.approx(2.0 + 1000 * 10e-6)
    # 4 ms and 100 kernels, but the host needs 10 ms for them
    sampled = phases[Phase("rlvr", "sample")]
    by_host = phase_seconds(config, CARD, sampled, num_tokens=200)
    assert by_host == pytest.approx(1.0 + 1000 * 10e-6 + 200 * 100 * 100e-6)
    # half of the longest completions on average, and a prompt: 8 rows x 100 + 100 keys of 1,000 bytes
    by_card = phase_seconds(config, replace(CARD, host_us=1), sampled, num_tokens=200)
    token = 0.004 + 100 * 10e-6 + (8 * 100 + 100) * 1000 / 1e9
    assert by_card == pytest.approx(1.0 + 1000 * 10e-6 + 200 * token)


def test_the_time_of_an_operation():
    """The larger of arithmetic and traffic; of an indexed tensor only the rows that move."""
    aten = torch.ops.aten
    a = torch.empty(1000, 1000, dtype=torch.bfloat16, device="meta")
    product = seconds_on(CARD, aten.mm.default, (a, a), [a, a, a])
    assert product == pytest.approx(2e9 / 1e12 if 2e-3 > 6e-3 else 6e6 / 1e9)
    wide = a.float()
    assert seconds_on(CARD, aten.mm.default, (wide, wide), [wide]) == pytest.approx(2e9 / 0.5e12)
    rows = torch.empty(8, 1000, dtype=torch.bfloat16, device="meta")
    index = torch.empty(8, dtype=torch.long, device="meta")
    moved = seconds_on(CARD, aten.embedding.default, (a, index), [a, index, rows])
    assert moved == pytest.approx(2 * (64 + 16000) / 1e9)
    stored = seconds_on(CARD, aten.index_copy_.default, (a, 0, index, rows), [a, index, rows, a])
    assert stored == pytest.approx(moved)


def few_layers(config, num_layers):
    architecture = architecture_of(config)
    architecture.config.text_config.num_hidden_layers = num_layers
    architecture.config.vision_config.depth = 4
    architecture.config.vision_config.deepstack_visual_indexes = [0, 1, 2]
    return architecture


def operations(config, phase, card=None):
    """The decoder's operations in a phase on a card, by name.

    Without attention of the vision tower, whose kernel torch chooses in C++: there a simulated tensor is a
    CPU's (fake_tensors.py). Its heads have 64 numbers, the decoder's 128.
    """
    names: Counter[str] = Counter()

    def watch(function, tensors):
        if "attention" not in str(function) or tensors[0].shape[-1] != 64:
            names.update([str(function)])

    card_regions(config, few_layers(config, 4), phase, card=card, watch=watch)
    return names


def test_training_is_simulated_with_the_operators_of_a_card():
    names = operations(load_recipe("rtx3060-2b"), Phase("sft", "train"))
    assert names["aten._scaled_dot_product_efficient_attention.default"] > 0
    assert names["aten._scaled_dot_product_efficient_attention_backward.default"] > 0
    assert not any("for_cpu" in name for name in names)


def test_the_heads_products_are_counted():
    names = operations(load_recipe("rtx3060-2b"), Phase("rlvr", "train"))
    assert names["aten.mm.dtype"] > 0


@pytest.mark.parametrize(("card", "operator"), [(A100, "varlen"), (T4, "efficient_attention")])
def test_decoding_is_simulated_with_the_attention_of_the_card(card, operator):
    config = load_recipe("rtx3060-2b")
    names = operations(config, Phase("align", "sample"), card)
    assert any(operator in name for name in names), names
    assert not any("for_cpu" in name for name in names)


def test_launches_of_a_decoded_token_are_bounded():
    """Of 8 layers less of 4: 10 a layer with dense weights, 24 with 4-bit weights and adapters."""
    for dense, most in (("always", 10), ("never", 24)):
        config = load_recipe("rtx3060-2b", {"sampling.dense_weights": dense})
        counts = [
            card_regions(config, few_layers(config, layers), Phase("align", "sample"), card=A100)[
                "draw", 3
            ].num_launches
            for layers in (4, 8)
        ]
        assert (counts[1] - counts[0]) / 4 <= most, (dense, counts)


def test_launches_of_a_training_step_are_bounded():
    """In a layer: forward, forward again from the checkpoint, backward. With PEFT's LoRA they were 685."""
    config = load_recipe("rtx4090-4b")
    regions = card_regions(config, few_layers(config, 4), Phase("sft", "train"), card=A100)
    (first, *_) = (key[1] for key in regions if key[0] == "backward")
    counts = [regions[key, first, 2].num_launches for key in ("forward", "backward")]
    print(f"{counts} launches a layer, forward and backward")
    assert sum(counts) <= 400


def test_a_token_does_not_cost_the_length_of_the_buffers():
    """Keys are counted apart from it (`key_bytes`), and a slot is written, not the buffer."""
    busy = []
    for most in (128, 1024):
        config = load_recipe("rtx3060-2b", {"sampling.max_completion_tokens": most})
        regions = card_regions(config, few_layers(config, 4), Phase("align", "sample"), card=A100)
        busy.append(regions["draw", 3].busy_s)
    assert busy[1] < 1.02 * busy[0]


def test_the_command_reads_a_record(tmp_path, capsys):
    file = tmp_path / "card.json"
    assert main(["plan", "--recipe", "t4-2b", "--measured", str(file)]) == 2
    assert "cannot be read as JSON" in capsys.readouterr().err
    file.write_text(json.dumps({"card": "x"}))
    assert main(["plan", "--recipe", "t4-2b", "--measured", str(file)]) == 2
    assert "no gib, stages in it" in capsys.readouterr().err
