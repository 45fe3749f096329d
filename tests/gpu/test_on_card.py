"""What only a card can show; part of `make gpu-check`. Not yet run on any."""

from __future__ import annotations

import pytest
import torch

from prism_lite.models.device import card_of, choose_precision
from prism_lite.models.packing import Tree, pack_trees
from prism_lite.policy.logprobs import predicted_logprobs
from tests.micro import fill_adapter, micro_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no NVIDIA card"),
]


def gradient(backbone, task) -> torch.Tensor:
    trees = [Tree(backbone.prompt(s), (backbone.tokenize(s.demonstration),)) for s in task.sft[:8]]
    pack = pack_trees(trees)
    (-predicted_logprobs(backbone, pack).mean()).backward()
    return torch.cat([p.grad.flatten() for p in backbone.policy_parameters()])


@pytest.mark.parametrize(
    "settings",
    [
        {"model__gradient_checkpointing": True},
        {"model__gradient_checkpointing": True, "model__offload_checkpoints": True},
        {"model__vision_on_cpu": True},
    ],
)
def test_memory_settings_do_not_change_gradients(make_backbone, task, settings):
    plain, other = (
        make_backbone(model__device="cuda"),
        make_backbone(model__device="cuda", **settings),
    )
    fill_adapter(plain)
    fill_adapter(other)
    expected, found = gradient(plain, task), gradient(other, task)
    assert (found - expected).norm() / expected.norm() < 1e-3


def test_the_cards_types_follow_float32(make_backbone, task):
    """Gradients in the card's own type against float32 on the CPU: rounding only."""
    card = make_backbone(model__device="cuda")
    precision = choose_precision(micro_recipe().model, card_of(micro_recipe().model))
    assert card.core.dtype == precision.compute_dtype
    cpu = make_backbone(model__device="cpu", model__compute_dtype="float32")
    fill_adapter(card)
    fill_adapter(cpu)
    expected, found = gradient(cpu, task), gradient(card, task).cpu()
    assert (found - expected).norm() / expected.norm() < 0.05
