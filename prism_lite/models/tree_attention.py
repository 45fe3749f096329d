"""How a pack's attention is computed, chosen in one place, and its way into transformers' layers.

parts: prompts and branches apart, merged (attention.py); memory linear in tokens, any device.
mask:  one call of scaled_dot_product_attention with a bool mask [F, K]; memory F * K bytes.
flex:  FlexAttention with the same rule as a block mask; compiled, CUDA sm80 and newer.

Shape letters as in attention.py: F tokens of a pack, K keys (F, after those of prompts kept apart).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prism_lite.models.attention import TreeAttention, TreeLayout, repeat_heads
from prism_lite.models.families.qwen3_vl import Core

IMPLEMENTATION = "prism_lite_tree"  # under this name transformers' layers find `_attention`
Kind = Literal["parts", "mask", "flex"]


def choose_kind(setting: str, device: torch.device) -> Kind:
    """The kind for `model.attention` on a device.

    Raises:
        ValueError: "flex" was asked for where FlexAttention's kernels do not run.
    """
    if setting in ("auto", "parts"):
        return "parts"
    if setting == "mask":
        return "mask"
    assert setting == "flex"
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 8:
        raise ValueError(
            "model.attention = flex needs an NVIDIA GPU of compute capability 8.0 or newer; "
            "use auto."
        )
    return "flex"


@dataclass(frozen=True, eq=False)
class TreeCall:
    """What every layer of one forward is given: the layout, the kind, and the kind's mask."""

    layout: TreeLayout
    kind: Kind
    mask: Any = None  # bool [F, K] or a BlockMask


def prepare(core: Core, layout: TreeLayout, kind: Kind) -> TreeCall:
    """Move a layout to the model's device, build the mask its kind needs, and be called for it."""
    core.config.text_config._attn_implementation = IMPLEMENTATION  # without a layout it is sdpa
    mask = None
    if kind == "mask":
        mask = tree_mask(layout, core.device)
    elif kind == "flex":
        mask = tree_block_mask(layout, core.device)
    return TreeCall(layout, kind, mask)


def token_marks(layout: TreeLayout, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """For each key, int64 [K]: its tree, and its branch (0 prompt, 1.. branches of all trees).

    Keys of prompts kept apart come first, then the pack's tokens in order.
    """
    trees, branches = [], []
    if layout.prefix is not None:
        lengths = [keys.shape[1] for keys, _ in layout.prefix[0]]
        trees += [torch.full((length,), tree) for tree, length in enumerate(lengths)]
        branches += [torch.zeros(sum(lengths), dtype=torch.long)]
    for spans in (layout.prompts, layout.branches):
        trees += [torch.full((stop - start,), tree) for tree, (start, stop) in enumerate(spans)]
    branches += [torch.zeros(sum(b - a for a, b in layout.prompts), dtype=torch.long)]
    longest = max(1, layout.grid_shape[1])
    branches += [1 + layout.cell_N.cpu() // longest]
    return torch.cat(trees).to(device), torch.cat(branches).to(device)


def tree_mask(layout: TreeLayout, device: torch.device | str) -> Tensor:
    """bool [F, K]: True where a token (row) may attend to a key."""
    tree_K, branch_K = token_marks(layout, device)
    num_keys = tree_K.shape[0]
    key_K = torch.arange(num_keys, device=device)
    query_F = torch.arange(num_keys - _num_tokens(layout), num_keys, device=device)
    return allowed(query_F[:, None], key_K[None, :], tree_K, branch_K)


def allowed(query: Tensor, key: Tensor, tree_K: Tensor, branch_K: Tensor) -> Tensor:
    """The rule, for indices of any shape: earlier keys of the own prompt and the own branch."""
    own_tree = tree_K[query] == tree_K[key]
    return own_tree & (key <= query) & ((branch_K[key] == 0) | (branch_K[key] == branch_K[query]))


def tree_block_mask(layout: TreeLayout, device: torch.device | str) -> Any:
    """The rule as FlexAttention's BlockMask."""
    from torch.nn.attention.flex_attention import create_block_mask

    tree_K, branch_K = token_marks(layout, device)
    num_keys, num_queries = tree_K.shape[0], _num_tokens(layout)
    offset = num_keys - num_queries

    def rule(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return allowed(query + offset, key, tree_K, branch_K)

    return create_block_mask(rule, None, None, num_queries, num_keys, device=str(device))


def _num_tokens(layout: TreeLayout) -> int:
    return sum(stop - start for start, stop in (*layout.prompts, *layout.branches))


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    tree_call: TreeCall | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: q [B, H, Q, d] -> [B, Q, H, d]. Without a layout, sdpa."""
    if tree_call is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )
    out_HFd = attend_pack(query[0], key[0], value[0], tree_call, module.layer_idx, scaling)
    return out_HFd.transpose(0, 1)[None], None


def attend_pack(
    q_HFd: Tensor, k_JFd: Tensor, v_JFd: Tensor, call: TreeCall, layer: int, scale: float
) -> Tensor:
    """Attention of one layer over a pack, differentiable: [H, F, d]."""
    layout = call.layout
    if call.kind == "parts":
        out = TreeAttention.apply(q_HFd, k_JFd, v_JFd, layout, layer, scale)
        assert isinstance(out, Tensor)
        return out
    if layout.prefix is not None:
        keys, values = zip(*layout.prefix[layer], strict=True)
        k_JFd, v_JFd = torch.cat([*keys, k_JFd], 1), torch.cat([*values, v_JFd], 1)
    if call.kind == "flex":
        flex = _compiled_flex() if q_HFd.is_cuda else _eager_flex()
        return flex(
            q_HFd[None], k_JFd[None], v_JFd[None], block_mask=call.mask, scale=scale,
            enable_gqa=True,
        )[0]  # fmt: skip
    k_HKd, v_HKd = (repeat_heads(x[None], q_HFd.shape[0]) for x in (k_JFd, v_JFd))
    return torch.nn.functional.scaled_dot_product_attention(
        q_HFd[None], k_HKd, v_HKd, attn_mask=call.mask, scale=scale
    )[0]


@functools.cache
def _compiled_flex() -> Any:
    return torch.compile(_eager_flex(), dynamic=True)


def _eager_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
