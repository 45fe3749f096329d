"""A lean forward of the text decoder for sampling: the model's own weights without the framework's cost.

Decoding a small batch token by token is dominated by what surrounds the matrix products: module calls,
LoRA's products of each linear, dequantising NF4 for every token. Here no module is called: weights are
dequantised and merged with the active adapter once per update (`dense`); where they do not fit, 4-bit
products read the packed weights, and linears with the same input share one LoRA product. Equal to
transformers' forward (tests/unit/sampling/test_decoder.py).

Shape letters: T tokens (of prompts end to end, or one per row), B prompts, F their tokens, V vocabulary,
H query heads, J key-value heads, d head size, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import triton_kernels as tk
from prism_lite.models.backbone import Backbone
from prism_lite.models.families import qwen3_vl as family
from prism_lite.models.families.qwen3_vl import Core
from prism_lite.models.packing import Tree, embed_pack, greedy_batches, pack_trees
from prism_lite.models.placement import frozen_weight
from prism_lite.models.prompts import Prompt
from prism_lite.models.tree_attention import TreeCall, attend_pack

Linear = Callable[[Tensor], Tensor]
# A layer's number and its product for queries, keys and values [T, H + 2 * J, d] -> [T, H * d]
Attend = Callable[[int, Tensor], Tensor]


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
    """The text model of a Qwen3-VL, under the adapters that were active when it was read."""

    layers: tuple[LeanLayer, ...]
    norm_D: Tensor
    eps: float
    num_heads: int
    num_kv_heads: int
    head_size: int
    scale: float
    rotary: Callable[..., tuple[Tensor, Tensor]]
    float32_residual: bool


def lean_decoder(core: Core, *, dense: bool, float32_residual: bool) -> LeanDecoder:
    """Read the text model of a Qwen3-VL.

    Args:
        dense: hold dequantised weights with the active adapter merged in: `dense_bytes` more memory
            while the result is in use.
        float32_residual: keep the residual stream in float32, as models/float16.py does in training.
    """
    text = family.decoder(core)
    first = text.layers[0].self_attn
    assert first.config.hidden_act == "silu", "swiglu is what run_lean_decoder computes"
    return LeanDecoder(
        layers=tuple(_lean_layer(layer, dense) for layer in text.layers),
        norm_D=text.norm.weight,
        eps=text.norm.variance_epsilon,
        num_heads=first.config.num_attention_heads,
        num_kv_heads=first.config.num_key_value_heads,
        head_size=first.head_dim,
        scale=first.scaling,
        rotary=text.rotary_emb,
        float32_residual=float32_residual,
    )


def dense_bytes(core: Core) -> int:
    """Return the memory that `dense` takes: all linears of the text model in the compute dtype."""
    layers = family.decoder_layers(core)
    linears = chain(*family.layer_linears(layers[0]))
    num_weights = sum(linear.in_features * linear.out_features for linear in linears)
    norm, _ = family.layer_norms(layers[0])
    return num_weights * norm.weight.element_size() * len(layers)


def _lean_layer(layer: Any, dense: bool) -> LeanLayer:
    input_norm, post_norm = family.layer_norms(layer)
    make = _merged if dense else _with_lora
    dtype = input_norm.weight.dtype
    qkv, out, gate_up, down = (make(modules, dtype) for modules in family.layer_linears(layer))
    return LeanLayer(
        qkv=qkv,
        out=out,
        gate_up=gate_up,
        down=down,
        input_norm_D=input_norm.weight,
        post_norm_D=post_norm.weight,
        qk_norm=family.query_key_norms(layer),
    )


def _with_lora(modules: Sequence[Any], dtype: torch.dtype) -> Linear:
    """Return the base product of every module, and one LoRA product for all, added by addmm."""
    products = [_base_product(getattr(module, "base_layer", module)) for module in modules]
    factors = _lora_factors(modules, dtype)

    def linear(x_TI: Tensor) -> Tensor:
        outputs = [product(x_TI) for product in products]
        out_TO = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        return out_TO if factors is None else out_TO.addmm_(x_TI @ factors[0], factors[1])

    return linear


def _base_product(base: Any) -> Linear:
    """Return the product with a frozen weight; of few rows and 4 bit, bitsandbytes reads packed weights."""
    assert getattr(base, "bias", None) is None
    if not hasattr(base.weight, "quant_state"):
        return partial(F.linear, weight=base.weight)
    from bitsandbytes import matmul_4bit

    return lambda x_TI: matmul_4bit(x_TI, base.weight, quant_state=base.weight.quant_state)


def _lora_factors(modules: Sequence[Any], dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """Return the active adapter of modules with the same input as two factors, or None without one.

    The A matrices are side by side, [I, r]; the B matrices, scaled, are the blocks of a block diagonal
    [r, O]: O and r are the modules' outputs and ranks end to end.
    """
    pairs = [pair for module in modules for pair in _active_lora(module)]
    if not pairs:
        return None
    assert len(pairs) == len(modules), "an adapter is on all modules of an input, or on none"
    a_rI = torch.cat([a for a, _ in pairs])
    b_Or = torch.block_diag(*[b for _, b in pairs])
    return a_rI.to(dtype).T.contiguous(), b_Or.to(dtype).T.contiguous()


def _active_lora(module: Any) -> list[tuple[Tensor, Tensor]]:
    """Return A [r, in] and B [out, r] times the scale of each active adapter of a module."""
    if not hasattr(module, "base_layer") or module.disable_adapters:
        return []
    return [
        (
            module.lora_A[name].weight.detach(),
            module.lora_B[name].weight.detach() * module.scaling[name],
        )
        for name in module.active_adapters
    ]


def _merged(modules: Sequence[Any], dtype: torch.dtype) -> Linear:
    """Return one product for all modules of the same input, on merged weights."""
    weight = torch.cat([_merged_weight(module).to(dtype) for module in modules])
    assert all(getattr(module, "bias", None) is None for module in modules)
    return partial(F.linear, weight=weight)


def _merged_weight(module: Any) -> Tensor:
    """Return a linear's weight [out, in], dequantised, plus its active adapter."""
    base = getattr(module, "base_layer", module)
    weight = frozen_weight(base)
    if base is not module and not module.disable_adapters:
        for adapter in module.active_adapters:
            weight = weight + module.get_delta_weight(adapter)
    return weight.detach()


def run_lean_decoder(
    decoder: LeanDecoder,
    hidden_TD: Tensor,
    attend: Attend,
    *,
    is_picture_T: Tensor | None = None,
    deepstack: Sequence[Tensor] = (),
) -> Tensor:
    """Compute final hidden states [T, D], after the last norm, from input embeddings.

    Args:
        hidden_TD: input embeddings.
        attend: rotates a layer's queries and keys (`rotated`), stores keys and values, and attends.
        is_picture_T, deepstack: DeepStack levels, added to visual tokens after the first layers.
    """
    num_heads = decoder.num_heads + 2 * decoder.num_kv_heads
    eps, dtype, delta_TD = decoder.eps, hidden_TD.dtype, None
    if decoder.float32_residual:
        hidden_TD = hidden_TD.float()
    for number, layer in enumerate(decoder.layers):
        hidden_TD, x_TD = tk.add_rms_norm(hidden_TD, delta_TD, layer.input_norm_D, eps, dtype)
        qkv = layer.qkv(x_TD).view(-1, num_heads, decoder.head_size)
        delta_TD = layer.out(attend(number, qkv))
        hidden_TD, x_TD = tk.add_rms_norm(hidden_TD, delta_TD, layer.post_norm_D, eps, dtype)
        delta_TD = layer.down(tk.swiglu(layer.gate_up(x_TD)))
        if number < len(deepstack):
            assert is_picture_T is not None
            hidden_TD = hidden_TD + delta_TD
            level_TD = torch.zeros_like(hidden_TD).masked_scatter(
                is_picture_T[:, None], deepstack[number].to(hidden_TD.dtype)
            )
            hidden_TD, delta_TD = hidden_TD + level_TD, None
    return tk.add_rms_norm(hidden_TD, delta_TD, decoder.norm_D, eps, dtype)[1]


def rotated(
    decoder: LeanDecoder, layer: int, qkv: Tensor, cos_T1d: Tensor, sin_T1d: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm a layer's queries and keys and rotate them to their M-RoPE positions.

    Args:
        qkv: [T, H + 2 * J, d], heads of queries, keys and values.

    Returns:
        q_THd, k_TJd, v_TJd.
    """
    num_qk = decoder.num_heads + decoder.num_kv_heads
    weight = decoder.layers[layer].qk_norm
    qk = tk.rotate_heads(qkv[:, :num_qk], weight, decoder.eps, cos_T1d, sin_T1d)
    return qk[:, : decoder.num_heads], qk[:, decoder.num_heads :], qkv[:, num_qk:]


def empty_buffers(decoder: LeanDecoder, num_tokens: int) -> list[Tensor]:
    """Return a buffer for each layer's keys and values [tokens, 2 * J, d], keys before values."""
    shape = num_tokens, 2 * decoder.num_kv_heads, decoder.head_size
    return [decoder.norm_D.new_empty(shape) for _ in decoder.layers]


def prefill(
    backbone: Backbone, decoder: LeanDecoder, prompts: Sequence[Prompt], buffers: Sequence[Tensor]
) -> Tensor:
    """Encode prompts end to end, at most `model.max_pack_tokens` tokens at a time.

    Args:
        buffers: the prompts' keys and values are stored in their first F tokens.

    Returns:
        next-token logits [B, V].
    """
    core, logits, first = backbone.core, [], 0
    num_kv_heads = decoder.num_kv_heads
    for batch in greedy_batches(prompts, len, backbone.config.max_pack_tokens):
        pack = pack_trees([Tree(prompt, ()) for prompt in batch])
        features = backbone.vision.features([p for prompt in batch for p in prompt.pictures])
        embeds_FD, deepstack = embed_pack(core, pack, features)
        cos_1Fd, sin_1Fd = decoder.rotary(embeds_FD, pack.position_ids_3F[:, None].to(core.device))
        call = TreeCall(pack.layout, "parts")
        tokens = slice(first, first + len(embeds_FD))
        cos_F1d, sin_F1d = cos_1Fd[0][:, None], sin_1Fd[0][:, None]

        def attend(
            layer: int, qkv: Tensor, tokens=tokens, call=call, cos_F1d=cos_F1d, sin_F1d=sin_F1d
        ) -> Tensor:
            q_FHd, k_FJd, v_FJd = rotated(decoder, layer, qkv, cos_F1d, sin_F1d)
            buffers[layer][tokens, :num_kv_heads] = k_FJd
            buffers[layer][tokens, num_kv_heads:] = v_FJd
            q, k, v = (x.transpose(0, 1) for x in (q_FHd, k_FJd, v_FJd))
            return attend_pack(q, k, v, call, layer, decoder.scale).transpose(0, 1).flatten(1)

        hidden_FD = run_lean_decoder(
            decoder,
            embeds_FD,
            attend,
            is_picture_T=pack.is_picture_F.to(core.device),
            deepstack=deepstack,
        )
        last_B = torch.tensor([stop - 1 for _, stop in pack.layout.prompts], device=core.device)
        logits.append(backbone.next_logits(hidden_FD[last_B]))
        first = tokens.stop
    return logits[0] if len(logits) == 1 else torch.cat(logits)
