"""The memory planner: simulated steps against the same steps on real tensors, to the byte."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from prism_lite.planner import cpu_memory, simulate_phase, tracker
from prism_lite.planner.architectures import architecture_of
from prism_lite.planner.cards import card_of
from prism_lite.planner.workload import PHASES, Phase
from tests.micro import micro_recipe
from tests.planning import real_regions, simulated_regions


def small_recipe(**overrides):
    return micro_recipe(
        **{
            "tiny__steps": 0,
            "model__gradient_checkpointing": True,
            "model__max_cached_pictures": 8,
            "sampling__max_completion_tokens": 6,
            "discriminator__max_part_tokens": 16,
            "warmup__num_prompts": 3,
        }
        | overrides
    )


def check_same(simulated, real):
    assert simulated.keys() == real.keys()
    for key, peak in real.items():
        other = simulated[key]
        assert (other.total, other.by_category, other.off_card) == (
            peak.total,
            peak.by_category,
            peak.off_card,
        ), key


@pytest.mark.parametrize("phase", PHASES)
def test_simulation_agrees_with_the_real_step_to_the_byte(micro_cache, phase):
    """Every region's peak: each layer forward and backward, head, optimizer, each drawn token."""
    config = small_recipe(discriminator__trunk="sft", rlvr__game="on")
    real = real_regions(config, phase)
    check_same(simulated_regions(config, phase), real)
    highest = max(real.values(), key=lambda peak: peak.total)
    assert highest.total == sum(highest.by_category.values())
    assert highest.by_category["weights"] > 0 and highest.by_category["adapters"] > 0
    assert highest.off_card == 0


def test_phases_that_share_a_stand_in_need_what_they_need_alone(micro_cache):
    """Adapters, gradients, prompts and pictures of one phase are gone in the next."""
    config = small_recipe(discriminator__trunk="sft", rlvr__kl_weight=0.1)
    architecture, card = architecture_of(config), card_of(12)
    shared = simulate_phase.StandIns(config, architecture, card)
    for phase in (
        Phase("align", "judge"), Phase("align", "panel"), Phase("rlvr", "train"),
        Phase("rlvr", "evaluate"),
    ):  # fmt: skip
        together = simulate_phase.simulate_phase(config, architecture, card, phase, shared)
        assert together == simulate_phase.simulate_phase(config, architecture, card, phase), phase


@pytest.mark.filterwarnings("ignore:Paged optimizers")
@pytest.mark.parametrize(
    "phase", [Phase("sft", "train"), Phase("align", "judge"), Phase("align", "sample")]
)
def test_what_waits_on_the_cpu_agrees_with_the_real_step_to_the_byte(
    micro_cache, monkeypatch, phase
):
    """Checkpoints, vision tower and optimizer states: on neither side are they on the card."""
    monkeypatch.setattr(cpu_memory, "PAGED_FROM", 200)  # the micro adapters are small
    plain = small_recipe(
        sft__optim__name="adamw8bit", align__optim__name="adamw8bit",
        discriminator__optim__name="adamw8bit",
    )  # fmt: skip
    moved = small_recipe(
        model__offload_checkpoints=True, model__vision_on_cpu=True,
        sft__optim__name="paged_adamw8bit", align__optim__name="paged_adamw8bit",
        discriminator__optim__name="paged_adamw8bit",
    )  # fmt: skip
    real = real_regions(moved, phase, separates_cpu=True)
    check_same(simulated_regions(moved, phase, separates_cpu=True), real)
    before = real_regions(plain, phase, separates_cpu=True)
    for key in real.keys() & before.keys():
        if key[0] in ("forward", "backward", "head", "draw", "optimizer"):  # no visit of the tower
            assert real[key].by_category["weights"] < before[key].by_category["weights"], key
            assert real[key].by_category["optimizer"] < before[key].by_category["optimizer"], key
            assert real[key].off_card > before[key].off_card == 0, key
    if phase.work == "train":
        names = {key[0] for key in real}
        assert {"forward", "backward", "head", "optimizer"} <= names
        last = real["head", 1], before["head", 1]
        assert last[0].by_category["activations"] < last[1].by_category["activations"]


@pytest.mark.parametrize(
    "phase", [phase for phase in PHASES if phase.work not in ("judge", "train")]
)
def test_a_few_tokens_give_the_full_completion(micro_cache, monkeypatch, phase):
    """Memory to the byte, and the cost of a token."""
    config = small_recipe(sampling__max_completion_tokens=24)
    arguments = (config, architecture_of(config), card_of(12), phase)
    few = simulate_phase.simulate_phase(*arguments)
    monkeypatch.setattr(simulate_phase, "NUM_DRAWS", 24)
    full = simulate_phase.simulate_phase(*arguments)
    assert few.peak.total == full.peak.total
    assert few.peak.by_category == full.peak.by_category
    assert few.token_cost is not None and few.token_cost.num_launches > 0
    assert few.token_cost == full.token_cost


def test_code_that_decides_a_category_exists():
    """A file or function that was renamed would silently count as activations."""
    for part, function, _ in tracker._BY_CODE:
        package, _, path = part.strip("/").partition("/")
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None, part
        file = Path(spec.origin).parent / path
        assert file.is_dir() if part.endswith("/") else file.is_file(), part
        if function is not None:
            nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
            assert function in functions, (part, function)
