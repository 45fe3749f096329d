"""Checkpointing with inputs on the CPU, and where tower and embeddings wait."""

from __future__ import annotations

import pytest
import torch

from prism_lite.config import OptimConfig
from prism_lite.models import placement
from prism_lite.models.families import qwen3_vl
from prism_lite.models.optim import make_optimizer, optimizer_step
from prism_lite.models.packing import Tree, pack_trees
from prism_lite.policy.logprobs import predicted_logprobs
from tests.micro import fill_adapter


def gradients(backbone, task) -> dict[str, torch.Tensor]:
    trees = [Tree(backbone.prompt(s), (backbone.tokenize(s.demonstration),)) for s in task.sft[:3]]
    pack = pack_trees(trees)
    (-predicted_logprobs(backbone, pack).mean()).backward()
    found = {n: p.grad for n, p in backbone.core.named_parameters() if p.grad is not None}
    for parameter in backbone.policy_parameters():
        parameter.grad = None
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_offloaded_checkpoints_give_the_same_gradients(make_backbone, task, dtype):
    results, calls = [], []
    for settings in (
        {},
        {"model__gradient_checkpointing": True},
        {"model__gradient_checkpointing": True, "model__offload_checkpoints": True},
    ):
        backbone = make_backbone(model__compute_dtype=dtype, **settings)
        fill_adapter(backbone)
        count = []
        layer = backbone.core.model.language_model.layers[
            0
        ].input_layernorm  # the first to run again
        layer.register_forward_hook(lambda *_, count=count: count.append(1))
        results.append(gradients(backbone, task))
        calls.append(len(count))
    assert calls == [1, 2, 2], "checkpointing runs each layer twice"
    plain, checkpointed, offloaded = results
    assert plain.keys() == offloaded.keys()
    assert len(plain) == len(make_backbone().policy_parameters())
    for name, gradient in plain.items():
        assert torch.equal(gradient, checkpointed[name]), name
        assert torch.equal(gradient, offloaded[name]), name


def test_an_offloaded_layer_keeps_nothing_but_its_input(make_backbone, task):
    """What autograd saves for the backward of a layer: with offload nothing of the layer's own."""
    saved = {}
    for offload in (False, True):
        kept = []
        x = torch.randn(4, 8, requires_grad=True)
        weight = torch.randn(8, 8)

        def layer(states, weight=weight):
            return (states @ weight).relu() @ weight

        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(t.shape) or t, lambda t: t
        ):
            y = placement.offloaded_checkpoint(layer, x) if offload else layer(x)
        saved[offload] = len(kept)
        y.sum().backward()
    assert saved[True] == 0 < saved[False]


def test_without_a_graph_the_layer_simply_runs():
    with torch.no_grad():
        y = placement.offloaded_checkpoint(lambda s: 2 * s, torch.ones(2))
    assert torch.equal(y, 2 * torch.ones(2)) and not y.requires_grad


def test_the_tower_visits_the_card_only_for_new_pictures(make_backbone, task, monkeypatch):
    """On a CPU both places are the CPU: the order of the moves is what is checked."""
    moves = []
    monkeypatch.setattr(placement, "modules_to_cpu", lambda modules: moves.append("to cpu"))
    monkeypatch.setattr(
        placement, "modules_to_card", lambda modules, device: moves.append("to card")
    )
    backbone = make_backbone(model__vision_on_cpu=True)
    plain = make_backbone()
    backbone.core.model.visual.register_forward_hook(lambda *_: moves.append("encode"))
    moves.clear()
    pictures = [s.pictures[0] for s in task.heldout[:3]]
    found = backbone.vision.features(pictures)
    assert moves == ["to card", "encode", "to cpu"]
    backbone.vision.features(pictures)
    assert len(moves) == 3, "cached pictures need no tower"
    for a, b in zip(found, plain.vision.features(pictures), strict=True):
        assert torch.equal(a.merged_ND, b.merged_ND)
    assert not any(
        parameter is backbone.core.model.visual.patch_embed.proj.weight
        for module in qwen3_vl.movable_tower_parts(backbone.core)
        for parameter in module.parameters()
    ), "the patch embedding stays: its device is the model's"
    in_parts = sum(
        p.numel() for m in qwen3_vl.movable_tower_parts(backbone.core) for p in m.parameters()
    )
    tower = backbone.core.model.visual
    total = sum(p.numel() for p in tower.parameters())
    assert in_parts == total - sum(p.numel() for p in tower.patch_embed.parameters())


def test_tied_embeddings_cannot_leave_the_head(make_backbone):
    with pytest.raises(ValueError, match="output head"):
        make_backbone(model__embeddings_on_cpu=True)


def test_untied_embeddings_are_looked_up_where_they_are(backbone):
    core = backbone.core
    head = core.get_output_embeddings()
    ids = torch.tensor([[3, 5, 7]])
    expected = core.get_input_embeddings()(ids)
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    placement.keep_embeddings_on_cpu(core)
    assert torch.equal(core.get_input_embeddings()(ids), expected)


@pytest.mark.filterwarnings("ignore:Paged optimizers")
@pytest.mark.parametrize("name", ["adamw8bit", "paged_adamw8bit"])
def test_8_bit_optimizers_keep_8_bit_state_and_follow_adamw(name):
    """bitsandbytes keeps tensors under 4,096 entries in 32 bit."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(64, 128, generator=generator)
    finals = {}
    for kind in ("adamw", name):
        parameter = torch.nn.Parameter(torch.zeros(64, 128))
        optimizer = make_optimizer([parameter], OptimConfig(0.02, name=kind))
        for _ in range(100):
            optimizer.backward((parameter - target).square().mean())
            optimizer_step(optimizer, [parameter], 0.02, 1e9)
        finals[kind] = float((parameter.detach() - target).square().mean())
        if kind == name:
            state = optimizer.inner.state[parameter]
            assert state["state1"].dtype == state["state2"].dtype == torch.uint8
            resumed = make_optimizer([parameter], OptimConfig(0.02, name=kind))
            resumed.load_state_dict(optimizer.state_dict())
            assert torch.equal(resumed.inner.state[parameter]["state1"], state["state1"])
    assert finals[name] < 1.5 * finals["adamw"] + 1e-3


def test_the_optimizer_follows_the_device():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = make_optimizer([parameter], OptimConfig(name="auto"))
    assert isinstance(optimizer.inner, torch.optim.AdamW)
