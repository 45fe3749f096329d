"""Number types by card; the float16 path with its loss scaler, run on the CPU."""

from __future__ import annotations

import functools
import math
import sys
import warnings

import pytest
import torch

from prism_lite.config import ModelConfig, OptimConfig, SamplingConfig
from prism_lite.models import device
from prism_lite.models.device import (
    Card,
    card_of,
    choose_precision,
    has_native_bfloat16,
    use_tensor_cores,
    warnings_of,
)
from prism_lite.models.optim import make_optimizer, mean_of, optimizer_step
from prism_lite.models.packing import Tree, pack_trees
from prism_lite.policy.logprobs import predicted_logprobs
from prism_lite.sampling import decoder
from prism_lite.sampling.rollouts import sample_groups
from tests.micro import fill_adapter

T4 = Card("Tesla T4", (7, 5), 14.7)
V100 = Card("V100", (7, 0), 16.0)
P100 = Card("P100", (6, 0), 16.0)
RTX3060 = Card("RTX 3060", (8, 6), 12.0)
RTX5090 = Card("RTX 5090", (12, 0), 32.0)


@pytest.mark.parametrize(
    ("card", "dtype", "half"),
    [
        (None, torch.float32, False),
        (P100, torch.float32, False),
        (V100, torch.float16, True),
        (T4, torch.float16, True),
        (RTX3060, torch.bfloat16, False),
        (RTX5090, torch.bfloat16, False),
    ],
)
def test_types_follow_the_card(card, dtype, half):
    found = choose_precision(ModelConfig(), card)
    assert found.compute_dtype == dtype
    assert found.scales_loss == found.float32_residual == half
    assert found.device == ("cpu" if card is None else "cuda:0")
    assert card is None or card.name in found.reason


def test_settings_win_over_the_card():
    assert choose_precision(ModelConfig(compute_dtype="float32"), T4).scales_loss is False
    assert choose_precision(ModelConfig(compute_dtype="float16"), None).scales_loss
    assert choose_precision(ModelConfig(compute_dtype="float16"), RTX5090).float32_residual
    assert card_of(ModelConfig(device="cpu")) is None


def test_float32_products_are_tf32_beside_16_bit_on_cards_that_have_it():
    before = torch.get_float32_matmul_precision()
    try:
        for model, card, expected in (
            (ModelConfig(), None, "highest"),
            (ModelConfig(), T4, "highest"),
            (ModelConfig(compute_dtype="float32"), RTX3060, "highest"),
            (ModelConfig(), RTX3060, "high"),
        ):
            torch.set_float32_matmul_precision("highest")
            use_tensor_cores(choose_precision(model, card), card)
            assert torch.get_float32_matmul_precision() == expected
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_card_that_lacks_something_is_warned_of_in_one_sentence_each(monkeypatch):
    reasons = {0: None}
    monkeypatch.setattr(device.tk, "why_no_triton", reasons.get)
    assert warnings_of(None) == warnings_of(T4) == warnings_of(RTX5090) == []
    (sentence,) = warnings_of(P100)
    assert "P100 (sm60) is older than sm75" in sentence and "model.quantization=none" in sentence
    assert warnings_of(V100)[0].startswith("V100 (sm70) is older than sm75")
    reasons[0] = "a tiny kernel cannot be launched (Failed to find C compiler)"
    assert warnings_of(T4) == [
        "no Triton kernels, the slower torch path instead: a tiny kernel cannot be launched "
        "(Failed to find C compiler)"
    ]


def test_memory_is_released_only_where_more_than_a_gib_is_unused(monkeypatch):
    released = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append(True))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 5 * 2**30)
    for reserved_gib, expected in ((5.9, 0), (6.1, 1)):
        reserved = int(reserved_gib * 2**30)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device, value=reserved: value)
        device.release_unused(torch.device("cpu"))
        assert not released
        device.release_unused(torch.device("cuda:0"))
        assert len(released) == expected


def test_bfloat16_on_a_card_without_it_is_refused():
    with pytest.raises(ValueError, match=r"Tesla T4 \(sm75\).*float16"):
        choose_precision(ModelConfig(compute_dtype="bfloat16"), T4)


def test_bfloat16_on_a_cpu_without_it_is_said_to_be_slow():
    reason = choose_precision(ModelConfig(compute_dtype="bfloat16"), None).reason
    assert ("slow" in reason) == (not has_native_bfloat16())


@pytest.mark.parametrize(
    ("source", "is_used"),
    [
        ("flash_attn_varlen_func = print", True),
        ("raise ImportError('undefined symbol: _ZN3c10')", False),  # built for another torch
        ("", False),  # an edition without this function
        (None, False),
    ],
)
def test_flash_attention_only_where_it_is_installed_and_can_run(
    monkeypatch, tmp_path, source, is_used
):
    if source is not None:
        (tmp_path / "flash_attn").mkdir()
        (tmp_path / "flash_attn" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # removed again afterwards
    del sys.modules["flash_attn"]
    uncached = functools.cache(device.has_flash_attn.__wrapped__)
    monkeypatch.setattr(device, "has_flash_attn", uncached)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert device.has_flash_attn() == is_used
    assert bool(told) == (source is not None and not is_used)
    expected = "flash_attention_2" if is_used else "sdpa"
    assert choose_precision(ModelConfig(), RTX3060).vision_attention == expected
    for model, card in (
        (ModelConfig(), T4),
        (ModelConfig(), None),
        (ModelConfig(float32_vision=True), RTX3060),
        (ModelConfig(compute_dtype="float32"), RTX3060),
    ):
        assert choose_precision(model, card).vision_attention == "sdpa"


def sft_pack(backbone, task, num=2):
    trees = [
        Tree(backbone.prompt(s), (backbone.tokenize(s.demonstration),)) for s in task.sft[:num]
    ]
    return pack_trees(trees)


def loss_of(backbone, pack):
    logprob_N = predicted_logprobs(backbone, pack)
    return -logprob_N.mean()


def raise_a_channel(core, value):
    """What real models do: one channel of the stream grows large, layer by layer."""
    for layer in core.model.language_model.layers:
        layer.mlp.register_forward_hook(
            lambda _m, _a, out: torch.cat([out[..., :1] + value, out[..., 1:]], -1)
        )


@pytest.fixture
def float16_backbone(make_backbone):
    backbone = make_backbone(model__compute_dtype="float16")
    fill_adapter(backbone)
    return backbone


def test_a_stream_beyond_float16_is_held_and_nothing_else_is_float32(
    float16_backbone, make_backbone, task
):
    """Two layers that each add 40,000 to a channel: 80,000 is infinite in float16."""
    backbone = float16_backbone
    seen = {}
    layer = backbone.core.model.language_model.layers[1]
    layer.register_forward_pre_hook(lambda _m, args: seen.update(stream=args[0].dtype))
    layer.self_attn.register_forward_hook(lambda _m, _a, out: seen.update(attention=out[0].dtype))
    layer.mlp.up_proj.register_forward_hook(lambda _m, _a, out: seen.update(up=out.dtype))
    raise_a_channel(backbone.core, 4e4)
    exact = make_backbone(model__compute_dtype="float32")
    fill_adapter(exact)
    raise_a_channel(exact.core, 4e4)
    with torch.no_grad():
        found = backbone.hidden_states(sft_pack(backbone, task))
        expected = exact.hidden_states(sft_pack(exact, task))
    assert seen == {"stream": torch.float32, "attention": torch.float16, "up": torch.float16}
    assert found.dtype == torch.float16 and torch.isfinite(found).all()
    error = (found.float() - expected).norm() / expected.norm()
    assert error < 2e-3, error


def test_without_the_float32_stream_the_same_model_overflows(make_backbone, task, monkeypatch):
    monkeypatch.setattr("prism_lite.models.backbone.keep_residual_in_float32", lambda *_: None)
    backbone = make_backbone(model__compute_dtype="float16")
    raise_a_channel(backbone.core, 4e4)
    pack = sft_pack(backbone, task)
    with torch.no_grad():
        logprob_N = predicted_logprobs(backbone, pack)
        exact = make_backbone(model__compute_dtype="float32")
        raise_a_channel(exact.core, 4e4)
        expected_N = predicted_logprobs(exact, pack)
    assert not torch.allclose(logprob_N, expected_N, atol=0.5)


def test_float16_gradients_are_those_of_float32_up_to_rounding(make_backbone, task):
    """Not quantised: a weight that float16 rounds across the middle of two NF4 values would differ
    by a whole step."""
    gradients = []
    for dtype in ("float16", "float32"):
        backbone = make_backbone(
            tiny__steps=0, model__quantization="none", model__compute_dtype=dtype
        )
        fill_adapter(backbone)
        parameters = backbone.policy_parameters()
        assert all(p.dtype == torch.float32 for p in parameters)
        optimizer = make_optimizer(
            parameters, OptimConfig(), scales_loss=backbone.precision.scales_loss
        )
        optimizer.backward(loss_of(backbone, sft_pack(backbone, task)))
        optimizer.scaler.unscale_(optimizer.inner)
        gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
    error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert error < 0.02, error


def test_scaling_saves_gradients_that_float16_would_lose(float16_backbone, task):
    """A loss so small that its float16 gradients are zero; scaled they are not."""
    backbone, parameters = float16_backbone, float16_backbone.policy_parameters()
    pack = sft_pack(backbone, task)
    found = {}
    for scales_loss in (False, True):
        optimizer = make_optimizer(parameters, OptimConfig(), scales_loss=scales_loss)
        optimizer.backward(1e-7 * loss_of(backbone, pack))
        optimizer.scaler.unscale_(optimizer.inner)
        found[scales_loss] = torch.cat([p.grad.flatten() for p in parameters])
        optimizer.inner.zero_grad()
    lost = (found[False] == 0).float().mean()
    assert lost > 0.5 > 0.1 > (found[True] == 0).float().mean()


def one_step(backbone, optimizer, pack):
    optimizer.backward(loss_of(backbone, pack))
    return optimizer_step(optimizer, backbone.policy_parameters(), 1e-3, 1.0)


def test_an_overflow_skips_the_step_halves_the_scale_and_training_recovers(float16_backbone, task):
    backbone, parameters = float16_backbone, float16_backbone.policy_parameters()
    optimizer = make_optimizer(parameters, OptimConfig(), scales_loss=True)
    scaler = optimizer.scaler
    pack = sft_pack(backbone, task)
    optimizer.backward(0 * loss_of(backbone, pack))  # the scale exists from the first backward on
    optimizer_step(optimizer, parameters, 0.0, 1.0)
    scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**24, "_growth_tracker": 5})
    before = [p.detach().clone() for p in parameters]
    moments = [s["step"].clone() for s in optimizer.inner.state.values()]
    skipped = one_step(backbone, optimizer, pack)
    assert skipped == {"skipped_steps": 1.0, "loss_scale": 2.0**24}
    assert all(map(torch.equal, before, parameters)), "a skipped step changes no weight"
    assert moments == [s["step"] for s in optimizer.inner.state.values()]
    assert scaler.get_scale() == 2.0**23
    assert all(p.grad is None for p in parameters)
    steps = [one_step(backbone, optimizer, pack) for _ in range(12)]
    assert "grad_norm" in steps[-1] and math.isfinite(steps[-1]["grad_norm"])
    assert not all(map(torch.equal, before, parameters))
    scales = [step["loss_scale"] for step in steps]
    assert scales == sorted(scales, reverse=True) and scales[-1] == scales[-2]


def test_an_overflow_that_no_scale_explains_stops_the_run(float16_backbone, task):
    backbone, parameters = float16_backbone, float16_backbone.policy_parameters()
    optimizer = make_optimizer(parameters, OptimConfig(), scales_loss=True)
    optimizer.scaler.load_state_dict(optimizer.scaler.state_dict() | {"scale": 1.0})
    before = [p.detach().clone() for p in parameters]
    optimizer.backward(loss_of(backbone, sft_pack(backbone, task)) * math.inf)
    with pytest.raises(RuntimeError, match="the step was not taken"):
        optimizer_step(optimizer, parameters, 1e-3, 1.0)
    assert all(map(torch.equal, before, parameters))


def test_the_scale_grows_after_a_while_and_travels_with_the_checkpoint():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = make_optimizer([parameter], OptimConfig(), scales_loss=True)
    for _ in range(200):
        optimizer.backward(parameter.sum())
        optimizer_step(optimizer, [parameter], 1e-3, 1.0)
    assert optimizer.scaler.get_scale() == 2.0**17
    state = optimizer.state_dict()
    other = make_optimizer([parameter], OptimConfig(), scales_loss=True)
    other.load_state_dict(state)
    assert other.scaler.state_dict() == optimizer.scaler.state_dict()
    with pytest.raises(ValueError, match=r"model\.compute_dtype"):
        make_optimizer([parameter], OptimConfig()).load_state_dict(state)


def test_metrics_of_several_steps():
    steps = [
        {"grad_norm": 2.0, "loss_scale": 8.0},
        {"skipped_steps": 1.0, "loss_scale": 4.0},
        {"skipped_steps": 1.0, "loss_scale": 3.0},
    ]
    assert mean_of(steps) == {"grad_norm": 2.0, "loss_scale": 5.0, "skipped_steps": 2.0}
    assert mean_of([]) == {}


def raise_a_channel_of_down(monkeypatch, core, value):
    """As `raise_a_channel`, where the lean decoder of sampling passes too: at the linear itself."""

    def raised(out):
        return torch.cat([out[..., :1] + value, out[..., 1:]], -1)

    downs = [layer.mlp.down_proj for layer in core.model.language_model.layers]
    for down in downs:
        down.register_forward_hook(lambda _m, _a, out: raised(out))
    for name in ("_merged", "_with_lora"):
        make = getattr(decoder, name)

        def made(modules, dtype, make=make):
            linear = make(modules, dtype)
            return (lambda x: raised(linear(x))) if modules[0] in downs else linear

        monkeypatch.setattr(decoder, name, made)


@pytest.mark.parametrize("weights", ["never", "always"])
def test_sampling_in_float16_holds_a_large_stream_and_agrees_with_training(
    float16_backbone, task, monkeypatch, weights
):
    """The log-probs that sampling reports are those that the policy loss computes again."""
    backbone = float16_backbone
    raise_a_channel_of_down(monkeypatch, backbone.core, 4e4)
    sampling = SamplingConfig(max_completion_tokens=12, dense_weights=weights)
    groups = sample_groups(
        backbone,
        task.heldout[:2],
        group_size=3,
        sampling=sampling,
        seed=("float16",),
    )
    for sample, group in zip(task.heldout, groups, strict=False):
        completions = tuple(torch.tensor(rollout.token_ids) for rollout in group.rollouts)
        pack = pack_trees([Tree(backbone.prompt(sample), completions)])
        with torch.no_grad():
            hidden_ND = backbone.hidden_states(pack)[pack.predictor_N].float()
        logits_NV = hidden_ND @ backbone.head_weight.float().T
        logits_NV[:, list(backbone.suppressed_ids)] = -torch.inf  # what sampling leaves out
        expected_N = logits_NV.log_softmax(-1).gather(1, pack.target_N[:, None])[:, 0]
        found_N = torch.cat([rollout.sampling_logprob_C for rollout in group.rollouts])
        torch.testing.assert_close(found_N, expected_N, rtol=0, atol=0.01)


def test_logits_that_are_not_finite_stop_sampling(backbone, task):
    """A NaN draws token 0 for ever; without a word the rollouts would count as malformed."""
    down = backbone.core.model.language_model.layers[1].mlp.down_proj
    torch.nn.init.constant_(down.lora_B["policy"].weight, torch.nan)
    with pytest.raises(RuntimeError, match=rf"{task.heldout[0].id}.*not finite.*float32"):
        sample_groups(
            backbone,
            task.heldout[:1],
            group_size=1,
            sampling=SamplingConfig(max_completion_tokens=3, dense_weights="never"),
            seed=("nan",),
        )
