"""A lean forward of the text decoder for sampling: the model's own weights, none of the framework's cost.

Decoding a small batch token by token is dominated by what surrounds the matrix products: module calls,
LoRA's three extra products per linear, NF4 dequantised again for every token. Here a layer's linears are
called through their modules (so LoRA and NF4 apply), or through weights that were dequantised and merged
with the active adapter once for the length of a sampling call (`dense`). Equal to transformers' forward
(tests/unit/test_decoder.py).

Shape letters: T tokens (of prompts end to end, or one per row), H query heads, J key-value heads, d head
size, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from prism_lite.models.families import qwen3_vl as family
from prism_lite.models.families.qwen3_vl import Core

Linear = Callable[[Tensor], Tensor]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, q_THd, k_TJd, v_TJd -> [T, H * d]


@dataclass(frozen=True, eq=False)
class LeanLayer:
    """One decoder layer: its linear maps and norm weights."""

    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear
    input_norm_D: Tensor
    post_norm_D: Tensor
    qk_norm: Tensor  # [H + J, d]


@dataclass(frozen=True, eq=False)
class LeanDecoder:
    """What `run` needs of a Qwen3-VL's text model, under the adapters that were active."""

    layers: tuple[LeanLayer, ...]
    norm_D: Tensor
    eps: float
    num_heads: int
    num_kv_heads: int
    head_size: int
    scale: float
    activation: Callable[[Tensor], Tensor]
    rotary: Callable[..., tuple[Tensor, Tensor]]
    float32_residual: bool


def lean_decoder(core: Core, *, dense: bool, float32_residual: bool) -> LeanDecoder:
    """Read the text model of a Qwen3-VL.

    Args:
        dense: hold dequantised weights with the active adapter merged in: `dense_bytes` more memory for
            as long as the result lives.
        float32_residual: keep the residual stream in float32, as models/float16.py does in training.
    """
    text = family.decoder(core)
    first = text.layers[0].self_attn
    return LeanDecoder(
        layers=tuple(_lean_layer(layer, dense) for layer in text.layers),
        norm_D=text.norm.weight,
        eps=text.norm.variance_epsilon,
        num_heads=first.config.num_attention_heads,
        num_kv_heads=first.config.num_key_value_heads,
        head_size=first.head_dim,
        scale=first.scaling,
        activation=text.layers[0].mlp.act_fn,
        rotary=text.rotary_emb,
        float32_residual=float32_residual,
    )


def dense_bytes(core: Core) -> int:
    """Memory that `dense` takes: all linears of the text model in the compute dtype."""
    layers = family.decoder_layers(core)
    linears = chain(*family.layer_linears(layers[0]))
    num_weights = sum(linear.in_features * linear.out_features for linear in linears)
    norm, _ = family.layer_norms(layers[0])
    return num_weights * norm.weight.element_size() * len(layers)


def _lean_layer(layer: Any, dense: bool) -> LeanLayer:
    input_norm, post_norm = family.layer_norms(layer)
    make = partial(_merged, dtype=input_norm.weight.dtype) if dense else _called
    qkv, out, gate_up, down = (make(modules) for modules in family.layer_linears(layer))
    return LeanLayer(
        qkv=qkv,
        out=out,
        gate_up=gate_up,
        down=down,
        input_norm_D=input_norm.weight,
        post_norm_D=post_norm.weight,
        qk_norm=family.query_key_norms(layer),
    )


def _called(modules: Sequence[nn.Module]) -> Linear:
    if len(modules) == 1:
        return modules[0]
    return lambda x: torch.cat([module(x) for module in modules], -1)


def _merged(modules: Sequence[Any], dtype: torch.dtype) -> Linear:
    """One product for all modules of the same input, on dequantised weights with LoRA merged."""
    weight = torch.cat([merged_weight(module).to(dtype) for module in modules])
    assert all(getattr(module, "bias", None) is None for module in modules)
    return partial(F.linear, weight=weight)


def merged_weight(module: Any) -> Tensor:
    """[out, in]: a linear's weight, dequantised, plus its active adapter."""
    base = getattr(module, "base_layer", module)
    weight = base.weight
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.data, weight.quant_state)
    if base is not module and not module.disable_adapters:
        for adapter in module.active_adapters:
            weight = weight + module.get_delta_weight(adapter)
    return weight.detach()


def run(
    decoder: LeanDecoder,
    hidden_TD: Tensor,
    cos_T1d: Tensor,
    sin_T1d: Tensor,
    attend: Attend,
    *,
    is_picture_T: Tensor | None = None,
    deepstack: Sequence[Tensor] = (),
) -> Tensor:
    """Input embeddings to final hidden states [T, D], after the last norm.

    Args:
        cos_T1d, sin_T1d: of each token's M-RoPE position.
        attend: stores the keys and values of a layer and attends.
        is_picture_T, deepstack: DeepStack levels, added to visual tokens after the first layers.
    """
    num_qk = decoder.num_heads + decoder.num_kv_heads
    shape, size, eps = (
        (-1, num_qk + decoder.num_kv_heads, decoder.head_size),
        decoder.head_size,
        decoder.eps,
    )
    width, dtype = (hidden_TD.shape[-1],), hidden_TD.dtype
    if decoder.float32_residual:
        hidden_TD = hidden_TD.float()
    for number, layer in enumerate(decoder.layers):
        x_TD = (F.rms_norm(hidden_TD, width, None, eps) * layer.input_norm_D).to(dtype)
        qkv = layer.qkv(x_TD).view(shape)
        qk, v_TJd = qkv[:, :num_qk], qkv[:, num_qk:]
        qk = F.rms_norm(qk, (size,), None, eps) * layer.qk_norm
        first, second = qk.chunk(2, -1)
        qk = torch.addcmul(qk * cos_T1d, torch.cat((-second, first), -1), sin_T1d)
        q_THd, k_TJd = qk[:, : decoder.num_heads], qk[:, decoder.num_heads :]
        hidden_TD = hidden_TD + layer.out(attend(number, q_THd, k_TJd, v_TJd))
        x_TD = (F.rms_norm(hidden_TD, width, None, eps) * layer.post_norm_D).to(dtype)
        gate, up = layer.gate_up(x_TD).chunk(2, -1)
        hidden_TD = hidden_TD + layer.down(decoder.activation(gate) * up)
        if number < len(deepstack):
            assert is_picture_T is not None
            level_TD = torch.zeros_like(hidden_TD).masked_scatter(
                is_picture_T[:, None], deepstack[number].to(hidden_TD.dtype)
            )
            hidden_TD = hidden_TD + level_TD
    return (F.rms_norm(hidden_TD, width, None, eps) * decoder.norm_D).to(dtype)
