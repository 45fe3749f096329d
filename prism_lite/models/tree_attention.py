"""Attention of a pack: the implementation is chosen here, and installed in transformers' layers.

parts: prompts and branches separately, merged (attention.py); memory linear in tokens, any device.
mask:  one call of scaled_dot_product_attention with a bool mask [F, K]; memory F * K bytes.
flex:  FlexAttention with the same rule as a block mask; compiled, CUDA sm80 and newer.

Shape letters: F tokens of a pack, K keys (prompts that are not in the pack, then F), H query heads, J
key-value heads, d head size, B batch of one, Q = F queries.
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

_IMPLEMENTATION = "prism_lite_tree"  # under this name transformers' layers find `_attention`
AttentionKind = Literal["parts", "mask", "flex"]


def choose_attention(setting: str, device: torch.device) -> AttentionKind:
    """Return the implementation for `model.attention` on a device.

    Raises:
        ValueError: "flex" is set and FlexAttention's kernels do not run on the device.
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
    """What every layer of one forward receives: layout, implementation and its mask."""

    layout: TreeLayout
    kind: AttentionKind
    mask: Any = None  # bool [F, K] or a BlockMask


def prepare(core: Core, layout: TreeLayout, kind: AttentionKind) -> TreeCall:
    """Install `_attention` in a model and build the mask that the implementation needs."""
    core.config.text_config._attn_implementation = _IMPLEMENTATION
    mask = None
    if kind == "mask":
        mask = tree_mask(layout, core.device)
    elif kind == "flex":
        mask = tree_block_mask(layout, core.device)
    return TreeCall(layout, kind, mask)


def tree_mask(layout: TreeLayout, device: torch.device | str) -> Tensor:
    """Return a bool mask [F, K], True if a token (row) may attend to a key."""
    tree_K, branch_K = _trees_and_branches(layout, device)
    num_keys = tree_K.shape[0]
    key_K = torch.arange(num_keys, device=device)
    query_F = key_K[num_keys - _num_tokens(layout) :]  # the pack's tokens are the last keys
    return _may_attend(query_F[:, None], key_K[None, :], tree_K, branch_K)


def tree_block_mask(layout: TreeLayout, device: torch.device | str) -> Any:
    """Return the same rule as FlexAttention's BlockMask."""
    from torch.nn.attention.flex_attention import create_block_mask

    tree_K, branch_K = _trees_and_branches(layout, device)
    num_keys, num_queries = tree_K.shape[0], _num_tokens(layout)
    offset = num_keys - num_queries  # the pack's tokens are the last keys

    def rule(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return _may_attend(query + offset, key, tree_K, branch_K)

    return create_block_mask(rule, None, None, num_queries, num_keys, device=str(device))


def _may_attend(query: Tensor, key: Tensor, tree_K: Tensor, branch_K: Tensor) -> Tensor:
    """Check, for key indices of any shape: earlier keys of the own prompt and the own branch."""
    own_tree = tree_K[query] == tree_K[key]
    return own_tree & (key <= query) & ((branch_K[key] == 0) | (branch_K[key] == branch_K[query]))


def _trees_and_branches(layout: TreeLayout, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return each key's tree and its branch (0 prompt, 1.. branches of all trees), int64 [K] each.

    Keys of prompts that are not in the pack come first, then the pack's tokens in order.
    """
    prefix = [] if layout.prefix is None else [keys.shape[1] for keys, _ in layout.prefix[0]]
    prompts, branches = (
        [stop - start for start, stop in s] for s in (layout.prompts, layout.branches)
    )
    tree_K = [
        torch.full((length,), tree)
        for lengths in (prefix, prompts, branches)
        for tree, length in enumerate(lengths)
    ]
    # A cell is branch * longest + offset, so the quotient is the branch.
    branch_N = layout.cell_N.cpu() // max(1, layout.grid_shape[1])
    branch_K = [torch.zeros(sum(prefix) + sum(prompts), dtype=torch.long), 1 + branch_N]
    return torch.cat(tree_K).to(device), torch.cat(branch_K).to(device)


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
    """Attend as transformers' layers ask for: q [B, H, Q, d] -> [B, Q, H, d]; sdpa without a layout."""
    if tree_call is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )
    out_HFd = attend_pack(query[0], key[0], value[0], tree_call, module.layer_idx, scaling)
    return out_HFd.transpose(0, 1)[None], None


def attend_pack(
    q_HFd: Tensor, k_JFd: Tensor, v_JFd: Tensor, call: TreeCall, layer: int, scale: float
) -> Tensor:
    """Compute the attention of one layer over a pack, differentiable: [H, F, d]."""
    layout = call.layout
    if call.kind == "parts":
        out = TreeAttention.apply(q_HFd, k_JFd, v_JFd, layout, layer, scale)
        assert isinstance(out, Tensor)
        return out
    if layout.prefix is not None:
        keys, values = zip(*layout.prefix[layer], strict=True)
        k_JFd, v_JFd = torch.cat([*keys, k_JFd], 1), torch.cat([*values, v_JFd], 1)
    if call.kind == "flex":
        flex = _flex_attention(is_compiled=q_HFd.is_cuda)
        q, k, v = q_HFd[None], k_JFd[None], v_JFd[None]
        return flex(q, k, v, block_mask=call.mask, scale=scale, enable_gqa=True)[0]
    k_HKd, v_HKd = (repeat_heads(x[None], q_HFd.shape[0]) for x in (k_JFd, v_JFd))
    return torch.nn.functional.scaled_dot_product_attention(
        q_HFd[None], k_HKd, v_HKd, attn_mask=call.mask, scale=scale
    )[0]


@functools.cache
def _flex_attention(*, is_compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if is_compiled else flex_attention


AttentionInterface.register(_IMPLEMENTATION, _attention)
AttentionMaskInterface.register(_IMPLEMENTATION, sdpa_mask)
