"""Attention of shared-prefix trees, in memory linear in tokens.

A branch token attends to its prompt and to its own branch. The two parts are computed separately, each by
torch's fused attention, which stores no score matrix, and merged by their log-sums of exponentials. A
prompt's keys serve all its branches in one call. The backward gives each part's kernel the merged output
and log-sum: the softmax over both parts is then differentiated exactly. (The prefix merge is that of
Hydragen, arXiv 2402.05099; merged backwards are what ring attention does, arXiv 2310.01889.)

Shape letters: A batch of calls, H query heads, J key-value heads, S = H / J, Q queries, K keys, d head
size, F tokens of a pack, P prompt tokens, N branch tokens, R branches, C tokens of the longest branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TreeLayout:
    """Positions of the trees in a pack: all prompts first, then all branches, end to end.

    Attributes:
        prompts: start and stop of each tree's prompt; empty (start = stop) if `prefix` has it.
        branches: start and stop of each tree's branch tokens.
        grid_shape: R and C.
        cell_N: int64, index of each branch token in the flattened grid of branches, [R * C].
        prefix: per layer, per tree: keys and values [J, P, d] of prompts that are not in the pack.
    """

    prompts: tuple[tuple[int, int], ...]
    branches: tuple[tuple[int, int], ...]
    grid_shape: tuple[int, int]
    cell_N: Tensor
    prefix: Sequence[Sequence[tuple[Tensor, Tensor]]] | None = None

    @property
    def first_branch_token(self) -> int:
        """Index of the first branch token; branch tokens continue to the end of the pack."""
        return self.branches[0][0]


def attend(
    q_AHQd: Tensor,
    k_AHKd: Tensor,
    v_AHKd: Tensor,
    *,
    scale: float,
    is_causal: bool = False,
    bias_A11K: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute fused attention and the log of its softmax's denominator; not differentiable by itself.

    Args:
        bias_A11K: added to the scores, -inf at padding; on a CPU only.

    Returns:
        output [A, H, Q, d] and log-sum-exp [A, H, Q], the latter float32 (float64 for float64).
    """
    if q_AHQd.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q_AHQd, k_AHKd, v_AHKd, is_causal=is_causal, attn_mask=bias_A11K, scale=scale
        )
    assert bias_A11K is None, "a card's rows attend with packed_attention.py"
    out_AHQd, lse_AHQ, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q_AHQd, k_AHKd, v_AHKd, None, compute_log_sumexp=True, is_causal=is_causal, scale=scale
    )
    return out_AHQd, lse_AHQ[:, :, : q_AHQd.shape[2]]  # the kernel pads them to a multiple of 32


def _attend_backward(
    grad_AHQd: Tensor,
    q_AHQd: Tensor,
    k_AHKd: Tensor,
    v_AHKd: Tensor,
    out_AHQd: Tensor,
    lse_AHQ: Tensor,
    *,
    scale: float,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of q, k and v of one part, given output and log-sum of the merged softmax."""
    if q_AHQd.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_AHQd, q_AHQd, k_AHKd, v_AHKd, out_AHQd, lse_AHQ, 0.0, is_causal, scale=scale
        )
    padding = -lse_AHQ.shape[2] % 32
    seed = torch.zeros((), dtype=torch.long)  # of dropout, which is off
    grads = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
        grad_AHQd,
        q_AHQd,
        k_AHKd,
        v_AHKd,
        None,
        out_AHQd,
        torch.nn.functional.pad(lse_AHQ, (0, padding)),
        seed,
        seed,
        0.0,
        [True, True, True, False],
        is_causal,
        scale=scale,
    )
    return grads[0], grads[1], grads[2]


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> Tensor:
    """Combine attention over two sets of keys; log-sums lack the last axis of the outputs."""
    share_b = torch.sigmoid(lse_b - lse_a)[..., None].to(out_a.dtype)
    return torch.lerp(out_a, out_b, share_b)


def _fold_heads(x_HQd: Tensor, num_kv_heads: int) -> Tensor:
    """Make heads that share a key head its queries: [H, Q, d] -> [1, J, S * Q, d]. Excludes a mask."""
    return x_HQd.reshape(1, num_kv_heads, -1, x_HQd.shape[-1])


def repeat_heads(x_AJKd: Tensor, num_heads: int) -> Tensor:
    """Repeat key-value heads for their query heads: [A, J, K, d] -> [A, H, K, d]."""
    batch, num_kv_heads, num_keys, size = x_AJKd.shape
    if num_kv_heads == num_heads:
        return x_AJKd
    expanded = x_AJKd[:, :, None].expand(-1, -1, num_heads // num_kv_heads, -1, -1)
    return expanded.reshape(batch, num_heads, num_keys, size)


def _sum_heads(x_AHKd: Tensor, num_kv_heads: int) -> Tensor:
    """Undo `repeat_heads` in the backward."""
    batch, num_heads, num_keys, size = x_AHKd.shape
    if num_kv_heads == num_heads:
        return x_AHKd
    return x_AHKd.view(batch, num_kv_heads, -1, num_keys, size).sum(2)


class TreeAttention(torch.autograd.Function):
    """Attention of one pack; q [H, F, d], k and v [J, F, d] -> [H, F, d]."""

    @staticmethod
    def forward(ctx: Any, q_HFd, k_JFd, v_JFd, layout: TreeLayout, layer: int, scale: float):
        num_heads, num_kv_heads = q_HFd.shape[0], k_JFd.shape[0]
        out_HFd = torch.empty_like(q_HFd, memory_format=torch.contiguous_format)
        wide = torch.float64 if q_HFd.dtype == torch.float64 else torch.float32
        lse_HF = q_HFd.new_empty(q_HFd.shape[:2], dtype=wide)
        for start, stop in layout.prompts:
            if start == stop:
                continue
            k, v = (repeat_heads(x[None, :, start:stop], num_heads) for x in (k_JFd, v_JFd))
            out, lse = attend(q_HFd[None, :, start:stop], k, v, scale=scale, is_causal=True)
            out_HFd[:, start:stop], lse_HF[:, start:stop] = out[0], lse[0]
        if layout.cell_N.numel():
            first = layout.first_branch_token
            q, k, v = _branch_part(q_HFd, k_JFd, v_JFd, layout)
            out, lse = attend(q, k, v, scale=scale, is_causal=True)
            out_HFd[:, first:] = _from_grid(out, layout)
            lse_HF[:, first:] = _from_grid(lse[..., None], layout)[..., 0]
        for tree, (start, stop) in enumerate(layout.branches):
            if start == stop:
                continue
            k, v = _prompt_part(k_JFd, v_JFd, layout, layer, tree)
            out, lse = attend(_fold_heads(q_HFd[:, start:stop], num_kv_heads), k, v, scale=scale)
            shape = (num_heads, stop - start)
            out, lse = out.reshape(*shape, -1), lse.reshape(shape)
            own_out, own_lse = out_HFd[:, start:stop], lse_HF[:, start:stop]
            out_HFd[:, start:stop] = merge(own_out, own_lse, out, lse)
            lse_HF[:, start:stop] = torch.logaddexp(own_lse, lse)
        ctx.save_for_backward(q_HFd, k_JFd, v_JFd, out_HFd, lse_HF)
        ctx.layout, ctx.layer, ctx.scale = layout, layer, scale
        return out_HFd

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        grad_HFd, (q_HFd, k_JFd, v_JFd, out_HFd, lse_HF) = grads[0], ctx.saved_tensors
        layout, scale, num_kv_heads = ctx.layout, ctx.scale, k_JFd.shape[0]
        grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (q_HFd, k_JFd, v_JFd))
        for start, stop in layout.prompts:
            if start == stop:
                continue
            k, v = (repeat_heads(x[None, :, start:stop], q_HFd.shape[0]) for x in (k_JFd, v_JFd))
            grad, q, out, lse = (x[None, :, start:stop] for x in (grad_HFd, q_HFd, out_HFd, lse_HF))
            dq, dk, dv = _attend_backward(grad, q, k, v, out, lse, scale=scale, is_causal=True)
            grad_q[:, start:stop] = dq[0]
            grad_k[:, start:stop] = _sum_heads(dk, num_kv_heads)[0]
            grad_v[:, start:stop] = _sum_heads(dv, num_kv_heads)[0]
        if layout.cell_N.numel():
            first = layout.first_branch_token
            q, k, v = _branch_part(q_HFd, k_JFd, v_JFd, layout)
            grad = _to_grid(grad_HFd[:, first:], layout)
            out = _to_grid(out_HFd[:, first:], layout)
            lse = _to_grid(lse_HF[:, first:, None], layout)[..., 0]
            dq, dk, dv = _attend_backward(grad, q, k, v, out, lse, scale=scale, is_causal=True)
            grad_q[:, first:] = _from_grid(dq, layout)
            grad_k[:, first:] = _from_grid(_sum_heads(dk, num_kv_heads), layout)
            grad_v[:, first:] = _from_grid(_sum_heads(dv, num_kv_heads), layout)
        for tree, (start, stop) in enumerate(layout.branches):
            if start == stop:
                continue
            k, v = _prompt_part(k_JFd, v_JFd, layout, ctx.layer, tree)
            q, grad, out = (
                _fold_heads(x[:, start:stop], num_kv_heads) for x in (q_HFd, grad_HFd, out_HFd)
            )
            lse = lse_HF[:, start:stop].reshape(1, num_kv_heads, -1)
            dq, dk, dv = _attend_backward(grad, q, k, v, out, lse, scale=scale)
            grad_q[:, start:stop] += dq.reshape(q_HFd.shape[0], stop - start, -1)
            if layout.prefix is None:
                p_start, p_stop = layout.prompts[tree]
                grad_k[:, p_start:p_stop] += dk[0]
                grad_v[:, p_start:p_stop] += dv[0]
        return grad_q, grad_k, grad_v, None, None, None


def _prompt_part(
    k_JFd: Tensor, v_JFd: Tensor, layout: TreeLayout, layer: int, tree: int
) -> tuple[Tensor, Tensor]:
    """Return the keys and values [1, J, P, d] of a tree's prompt."""
    if layout.prefix is not None:
        k_JPd, v_JPd = layout.prefix[layer][tree]
        return k_JPd[None], v_JPd[None]
    start, stop = layout.prompts[tree]
    return k_JFd[None, :, start:stop], v_JFd[None, :, start:stop]


def _branch_part(
    q_HFd: Tensor, k_JFd: Tensor, v_JFd: Tensor, layout: TreeLayout
) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out branches side by side, [R, H, C, d]; padding comes last, so causality hides it."""
    num_heads, first = q_HFd.shape[0], layout.first_branch_token
    q, k, v = (_to_grid(x[:, first:], layout) for x in (q_HFd, k_JFd, v_JFd))
    return q, repeat_heads(k, num_heads), repeat_heads(v, num_heads)


def _to_grid(x_HNd: Tensor, layout: TreeLayout) -> Tensor:
    """Scatter branch tokens to the grid: [H, N, d] -> [R, H, C, d], zeros at the padding."""
    num_branches, longest = layout.grid_shape
    grid = x_HNd.new_zeros(x_HNd.shape[0], num_branches * longest, x_HNd.shape[2])
    grid[:, layout.cell_N] = x_HNd
    return grid.view(x_HNd.shape[0], num_branches, longest, -1).transpose(0, 1)


def _from_grid(x_RHCd: Tensor, layout: TreeLayout) -> Tensor:
    """Gather branch tokens from the grid: [R, H, C, d] -> [H, N, d]."""
    return x_RHCd.transpose(0, 1).flatten(1, 2)[:, layout.cell_N]
