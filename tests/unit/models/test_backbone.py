"""The frozen backbone: what is quantised, what stays frozen, what is saved."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import get_peft_model_state_dict
from transformers import AutoModelForImageTextToText, Qwen3VLForConditionalGeneration

from prism_lite import pipeline
from prism_lite.models.backbone import TRUNK, load_backbone
from prism_lite.models.families import qwen3_vl
from prism_lite.models.packing import Tree, pack_trees
from prism_lite.models.vision import PictureFeatures
from prism_lite.rewards.load import load_rewards
from prism_lite.runs.folder import open_run
from prism_lite.stages.context import Context
from tests.micro import fill_adapter, micro_recipe, quiet_console


def base_linears(core):
    """The linears themselves, not the LoRA matrices beside them."""
    for name, module in core.named_modules():
        if isinstance(module, torch.nn.Linear) and "lora_" not in name:
            yield name, module


def test_nf4_with_double_quantisation_on_the_language_linears_only(backbone):
    quantised = {n for n, m in base_linears(backbone.core) if isinstance(m, bnb.nn.Linear4bit)}
    plain = {n for n, m in base_linears(backbone.core) if not isinstance(m, bnb.nn.Linear4bit)}
    num_layers = backbone.core.config.text_config.num_hidden_layers
    assert len(quantised) == 7 * num_layers
    assert all("language_model.layers" in name for name in quantised)
    assert any(name.endswith("lm_head") for name in plain)
    assert any("visual" in name for name in plain)
    for name, module in base_linears(backbone.core):
        if name in quantised:
            weight = module.weight
            assert weight.dtype == torch.uint8, name
            assert weight.quant_state.quant_type == "nf4", name
            assert weight.quant_state.nested, name  # double quantisation
            assert weight.numel() == weight.quant_state.shape.numel() // 2
        else:
            assert module.weight.dtype == torch.float32, name


def test_every_language_linear_has_an_adapter_and_nothing_else_has(backbone):
    adapted = {
        name.rpartition(".lora_A")[0]
        for name, _ in backbone.core.named_parameters()
        if ".lora_A." in name
    }
    leaves = {name.rpartition(".")[2] for name in adapted}
    assert leaves == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert not any("visual" in name for name in adapted)
    assert all(p.dtype == torch.float32 for p in backbone.policy_parameters())
    assert len(backbone.policy_parameters()) == 2 * len(adapted)


def test_the_fresh_policy_is_exactly_the_base(backbone, task):
    sample = task.sft[0]
    tree = Tree(backbone.prompt(sample), (backbone.tokenize(sample.demonstration),))
    pack = pack_trees([tree])
    with torch.no_grad():
        fresh = backbone.hidden_states(pack)
        with backbone.role("reference"):
            bare = backbone.hidden_states(pack)
        fill_adapter(backbone)
        filled = backbone.hidden_states(pack)
    assert torch.equal(fresh, bare)
    assert not torch.allclose(filled, bare, atol=1e-3)


def test_the_policy_initialisation_follows_the_seed(micro_cache):
    config = micro_recipe()
    base = pipeline.base_folder(config)
    states = [
        load_backbone(config.model, config.lora, base, seed=seed).adapter_state()
        for seed in (0, 0, 1)
    ]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert any(not torch.equal(states[0][k], states[2][k]) for k in states[0])


def test_adapter_state_round_trip(backbone, make_backbone):
    fill_adapter(backbone)
    state = backbone.adapter_state()
    fill_adapter(backbone, seed=3)
    assert any(not torch.equal(state[k], v) for k, v in backbone.adapter_state().items())
    other = make_backbone()
    other.load_adapter_state(state)
    assert all(torch.equal(state[k], v) for k, v in other.adapter_state().items())
    other.freeze_copy(TRUNK)
    fill_adapter(other, seed=4)
    trunk = get_peft_model_state_dict(other.peft, adapter_name=TRUNK)
    assert all(torch.equal(state[k], v) for k, v in trunk.items())


def test_an_adapter_of_another_shape_is_refused(backbone, make_backbone):
    wide = make_backbone(lora__rank=8)
    with pytest.raises(ValueError, match="lora settings"):
        backbone.load_adapter_state(wide.adapter_state())
    with pytest.raises(ValueError, match="do not fit"):
        backbone.load_adapter_state({})


def test_the_tiny_base_is_an_ordinary_transformers_folder(micro_cache):
    folder = pipeline.base_folder(micro_recipe())
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(model) is Qwen3VLForConditionalGeneration
    assert model.config.vision_config.deepstack_visual_indexes
    assert pipeline.base_folder(micro_recipe()) == folder  # cached
    assert pipeline.base_folder(micro_recipe(tiny__steps=0)) != folder


def test_the_linear_patch_embedding_equals_the_convolution(make_backbone):
    config = micro_recipe(tiny__steps=0)
    model = AutoModelForImageTextToText.from_pretrained(pipeline.base_folder(config)).double()
    embedding = model.model.visual.patch_embed
    assert isinstance(embedding.proj, torch.nn.Conv3d)
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(
        12, embedding.proj.weight[0].numel(), generator=generator, dtype=torch.float64
    )
    with torch.no_grad():
        expected = embedding(patches)
        qwen3_vl.use_linear_patch_embedding(model)
        found = embedding(patches)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_picture_features_are_the_towers_and_are_computed_once(backbone, task):
    pictures = [sample.pictures[0] for sample in task.heldout[:4]]
    calls = []
    handle = backbone.core.model.visual.register_forward_hook(lambda *_: calls.append(1))
    first = backbone.vision.features(pictures)
    second = backbone.vision.features(pictures[::-1])[::-1]
    handle.remove()
    assert len(calls) == 1
    inputs = backbone.processor.image_processor(images=[pictures[2].open()], return_tensors="pt")
    with torch.no_grad():
        output = backbone.core.model.get_image_features(
            inputs["pixel_values"], inputs["image_grid_thw"]
        )
    # alone or beside others: other shapes, float32 rounding
    torch.testing.assert_close(first[2].merged_ND, output.pooler_output[0], rtol=0, atol=1e-5)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.merged_ND, b.merged_ND)
        assert all(map(torch.equal, a.deepstack_ND, b.deepstack_ND))


def frozen_state(core) -> dict[str, torch.Tensor]:
    """Every weight, buffer and quantisation constant that no stage may touch."""
    state = {k: v.clone() for k, v in core.state_dict().items() if "lora_" not in k}
    state |= {f"buffer {k}": v.clone() for k, v in core.named_buffers()}
    return state


def test_no_frozen_weight_changes_a_bit_in_a_whole_run(micro_cache, task, tmp_path):
    config = micro_recipe(sft__steps=2, warmup__steps=2, align__steps=2, rlvr__steps=2)
    backbone = load_backbone(config.model, config.lora, pipeline.base_folder(config), seed=0)
    before = frozen_state(backbone.core)
    assert sum(".quant_state." in name for name in before) == 14
    with open_run(tmp_path / "r", config, quiet_console()) as folder:
        context = Context(config, folder, backbone, task, load_rewards(config))
        for stage in pipeline.RUN_STAGE.values():
            stage(context)
    after = frozen_state(backbone.core)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    fresh = load_backbone(config.model, config.lora, pipeline.base_folder(config), seed=0)
    assert any(
        not torch.equal(v, fresh.adapter_state()[k]) for k, v in backbone.adapter_state().items()
    )


def test_deepstack_levels_split_or_whole_give_the_same_features():
    """transformers 5.23 splits them by picture, 5.17 does not."""
    merged = (torch.randn(2, 8), torch.randn(3, 8))
    whole = [torch.randn(5, 8), torch.randn(5, 8)]
    split = [(level[:2], level[2:]) for level in whole]
    for levels in (whole, split):
        output = SimpleNamespace(pooler_output=merged, deepstack_features=levels)
        model = SimpleNamespace(get_image_features=lambda _pixels, _grids, output=output: output)
        core: Any = SimpleNamespace(model=model, device="cpu")
        encoded = qwen3_vl.encode_pixels(core, torch.zeros(1), torch.zeros(1))
        features_of = [PictureFeatures(*of_picture) for of_picture in encoded]
        assert [len(features.deepstack_ND) for features in features_of] == [2, 2]
        for number, features in enumerate(features_of):
            assert torch.equal(features.merged_ND, merged[number])
            for level, expected in zip(features.deepstack_ND, split, strict=True):
                assert torch.equal(level, expected[number])
