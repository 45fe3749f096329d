"""Keys and values while groups decode on a CPU: a prompt's once for all its rows, and each row's own.

A row attends to its prompt and to its own tokens in two calls, merged by their log-sums (attention.py).
Prompts of similar length share a call: all rows of a prompt are queries of one product with its keys.

Shape letters: R rows, B prompts of one bucket, G grid rows per prompt, H query heads, J key-value heads,
S = H / J, P tokens of a bucket's longest prompt, F tokens of prompts end to end, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prism_lite.models.attention import attend, merge
from prism_lite.sampling.decoder import LeanDecoder, rotated

_GROWTH = 1.25  # a bucket's longest prompt is at most this many times its shortest


class PromptBucket:
    """Prompts of similar length, padded to the longest, and the rows that attend to them.

    Rows of a bucket are neighbours, prompt after prompt. One call takes a grid of B x G rows, so groups
    smaller than the largest are padded: `cell_R` is each row's cell, None if the grid is full.
    """

    def __init__(
        self, keys_values: list[tuple[Tensor, Tensor]], lengths: Sequence[int], rows: Sequence[int]
    ) -> None:
        """
        Args:
            keys_values: per layer, [B, J, P, d] each.
            lengths: tokens of each prompt.
            rows: number of rows of each prompt.
        """
        self.keys_values = keys_values
        self.lengths = list(lengths)
        self.prompt_R = [prompt for prompt, count in enumerate(rows) for _ in range(count)]
        self._lay_out()

    def _lay_out(self) -> None:
        """Compute the grid of the present rows, and the bias that hides padding of the prompts."""
        keys = self.keys_values[0][0]
        num_prompts, num_keys = len(self.lengths), keys.shape[2]
        counts = [self.prompt_R.count(prompt) for prompt in range(num_prompts)]
        per_prompt = max(counts)
        self.grid = (num_prompts, per_prompt)
        self.cell_R = self.bias = None
        if min(counts) < per_prompt:
            # Row-major cells: a prompt's rows fill the first cells of its line.
            cells = [
                prompt * per_prompt + i for prompt, count in enumerate(counts) for i in range(count)
            ]
            self.cell_R = torch.tensor(cells, device=keys.device)
        if min(self.lengths) < num_keys:
            key_P = torch.arange(num_keys, device=keys.device)
            length_B1 = torch.tensor(self.lengths, device=keys.device)[:, None]
            zeros_BP = keys.new_zeros(num_prompts, num_keys)
            self.bias = zeros_BP.masked_fill(key_P >= length_B1, -torch.inf)[:, None, None]

    def attend(self, layer: int, q_RHd: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return the output [R, H, d] and log-sum [R, H] of each row over its prompt."""
        keys, values = self.keys_values[layer]
        num_heads, size = q_RHd.shape[1:]
        (num_prompts, per_prompt), num_kv_heads = self.grid, keys.shape[1]
        if self.cell_R is not None:
            grid = q_RHd.new_zeros(num_prompts * per_prompt, num_heads, size)
            grid[self.cell_R] = q_RHd
            q_RHd = grid
        # Heads that share a key head become its queries: [B, G, J, S, d] -> [B, J, G * S, d]
        q = q_RHd.reshape(num_prompts, per_prompt, num_kv_heads, -1, size).transpose(1, 2)
        q = q.reshape(num_prompts, num_kv_heads, -1, size)
        out, lse = attend(q, keys, values, scale=scale, bias_A11K=self.bias)
        out = out.reshape(num_prompts, num_kv_heads, per_prompt, -1, size).transpose(1, 2)
        lse = lse.reshape(num_prompts, num_kv_heads, per_prompt, -1).transpose(1, 2)
        out_RHd, lse_RH = out.reshape(-1, num_heads, size), lse.reshape(-1, num_heads)
        if self.cell_R is not None:
            out_RHd, lse_RH = out_RHd[self.cell_R], lse_RH[self.cell_R]
        return out_RHd, lse_RH

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, and the prompts without rows once they are a quarter."""
        self.prompt_R = [self.prompt_R[row] for row in rows]
        used = sorted(set(self.prompt_R))
        if len(used) <= 0.75 * len(self.lengths):
            index = torch.tensor(used, device=self.keys_values[0][0].device, dtype=torch.long)
            for layer, (keys, values) in enumerate(self.keys_values):  # one at a time: memory
                self.keys_values[layer] = keys[index], values[index]
            self.lengths = [self.lengths[prompt] for prompt in used]
            new_number = {prompt: i for i, prompt in enumerate(used)}
            self.prompt_R = [new_number[prompt] for prompt in self.prompt_R]
        if self.prompt_R:
            self._lay_out()


class GroupCache:
    """The buckets of all prompts, and the rows' own keys and values in buffers of full length.

    The buffers are allocated once: memory is used as planned, and nothing is copied while completions
    grow. A row attends to the slots that are filled.
    """

    def __init__(self, buckets: list[PromptBucket], max_tokens: int) -> None:
        self.buckets = buckets
        num_rows = sum(len(bucket.prompt_R) for bucket in buckets)
        self._num_filled = 0  # slots, in every row
        self._own = [
            (_empty(keys, num_rows, max_tokens), _empty(values, num_rows, max_tokens))
            for keys, values in buckets[0].keys_values
        ]

    def open_slot(self) -> None:
        """Begin the next token of every row: `attend` stores it in the next slot."""
        self._num_filled += 1

    def attend_product(
        self, decoder: LeanDecoder, layer: int, qkv: Tensor, cos_R1d: Tensor, sin_R1d: Tensor
    ) -> Tensor:
        """Rotate a layer's queries and keys, store keys and values in the open slot, and attend."""
        return self.attend(layer, *rotated(decoder, layer, qkv, cos_R1d, sin_R1d), decoder.scale)

    def attend(
        self, layer: int, q_RHd: Tensor, k_RJd: Tensor, v_RJd: Tensor, scale: float
    ) -> Tensor:
        """Store a layer's key and value in the open slot and attend: [R, H * d]."""
        keys, values = (buffer[:, :, : self._num_filled] for buffer in self._own[layer])
        keys[:, :, -1], values[:, :, -1] = k_RJd, v_RJd
        num_rows, num_heads, size = q_RHd.shape
        q_RJSd = q_RHd.reshape(num_rows, keys.shape[1], -1, size)
        own, own_lse = attend(q_RJSd, keys, values, scale=scale)
        own_RHd, own_lse_RH = own.reshape(q_RHd.shape), own_lse.reshape(num_rows, num_heads)
        outs, lses, start = [], [], 0
        for bucket in self.buckets:  # each has its own span of the rows
            stop = start + len(bucket.prompt_R)
            out, lse = bucket.attend(layer, q_RHd[start:stop], scale)
            outs.append(out)
            lses.append(lse)
            start = stop
        out_RHd = outs[0] if len(outs) == 1 else torch.cat(outs)
        lse_RH = lses[0] if len(lses) == 1 else torch.cat(lses)
        return merge(out_RHd, lse_RH, own_RHd, own_lse_RH).reshape(num_rows, -1)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these (ascending)."""
        index = torch.tensor(rows, device=self._own[0][0].device)
        for layer, buffers in enumerate(self._own):
            self._own[layer] = (self._kept(buffers[0], index), self._kept(buffers[1], index))
        start = 0
        for bucket in self.buckets:  # their row numbers count from their own first row
            stop = start + len(bucket.prompt_R)
            bucket.keep([row - start for row in rows if start <= row < stop])
            start = stop
        self.buckets = [bucket for bucket in self.buckets if bucket.prompt_R]

    def _kept(self, old: Tensor, index: Tensor) -> Tensor:
        new = _empty(old, len(index), old.shape[2])
        new[:, :, : self._num_filled] = old[index, :, : self._num_filled]
        return new


def _empty(like: Tensor, num_rows: int, num_slots: int) -> Tensor:
    return like.new_empty(num_rows, like.shape[1], num_slots, like.shape[3])


def bucket_prompts(lengths: Sequence[int]) -> list[list[int]]:
    """Distribute prompts, shortest first, to buckets of similar length."""
    buckets: list[list[int]] = []
    for prompt in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not buckets or lengths[prompt] > _GROWTH * lengths[buckets[-1][0]]:
            buckets.append([])
        buckets[-1].append(prompt)
    return buckets


def pad_prompts(
    buffers: list[Tensor], buckets: Sequence[Sequence[tuple[int, int]]]
) -> list[list[tuple[Tensor, Tensor]]]:
    """Turn keys and values of prompts end to end into [B, J, P, d] of each bucket and layer.

    Args:
        buffers: per layer [F, 2 * J, d], keys before values; emptied on the way, so that there are never
            two copies of everything.
        buckets: start and stop in F of each prompt of each bucket.
    """
    last_token, device = buffers[0].shape[0] - 1, buffers[0].device
    indices = [_token_index(spans, last_token).to(device) for spans in buckets]
    padded: list[list[tuple[Tensor, Tensor]]] = [[] for _ in buckets]
    while buffers:
        k_FJd, v_FJd = buffers.pop(0).chunk(2, 1)
        for index_BP, keys_values in zip(indices, padded, strict=True):
            keys_values.append((_rows(k_FJd, index_BP), _rows(v_FJd, index_BP)))
    return padded


def _token_index(spans: Sequence[tuple[int, int]], last_token: int) -> Tensor:
    """Return the index in F of each prompt's tokens, [B, P].

    After a shorter prompt's tokens come those of its neighbours, which the bucket's bias hides; an index
    must only exist, hence the bound.
    """
    longest = max(stop - start for start, stop in spans)
    return torch.tensor(
        [[min(start + i, last_token) for i in range(longest)] for start, _ in spans]
    )


def _rows(tensor_FJd: Tensor, index_BP: Tensor) -> Tensor:
    return tensor_FJd[index_BP].transpose(1, 2).contiguous()
