"""Keys and values while groups decode: a prompt's once for all its rows, each row's own behind it.

A row attends to its prompt and to its own tokens in two calls, merged by their log-sums (attention.py).
Prompts of similar length share a call: all rows of a prompt are queries of one product with its keys.

Shape letters: R rows, B prompts of one bucket, G grid rows per prompt, H query heads, J key-value heads,
S = H / J, P tokens of a bucket's longest prompt, T capacity of the rows' own buffers, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prism_lite.models.attention import BIAS_ALIGNMENT, attend, merge

GROWTH = 1.25  # a bucket's longest prompt is at most this many times its shortest


class Bucket:
    """Prompts of similar length, padded to the longest, and the rows that read them.

    Rows of a bucket are neighbours, prompt after prompt; `slot_R` is where each lies in a grid of B x G,
    None while the grid is full.
    """

    def __init__(
        self, keys_values: list[tuple[Tensor, Tensor]], lengths: Sequence[int], rows: Sequence[int]
    ):
        self.keys_values = keys_values  # per layer, [B, J, P, d] each
        self.lengths = list(lengths)
        self.prompt_R = [prompt for prompt, count in enumerate(rows) for _ in range(count)]
        self._lay_out()

    def _lay_out(self) -> None:
        """The grid of the present rows, and the bias that hides padding."""
        keys = self.keys_values[0][0]
        counts = [0] * len(self.lengths)
        slots = []
        for prompt in self.prompt_R:
            slots.append((prompt, counts[prompt]))
            counts[prompt] += 1
        self.grid = (len(self.lengths), max(counts, default=0))
        is_full = len(slots) == self.grid[0] * self.grid[1]
        flat = [prompt * self.grid[1] + place for prompt, place in slots]
        self.slot_R = None if is_full else torch.tensor(flat, device=keys.device)
        self.bias = None
        if min(self.lengths) < keys.shape[2]:
            place_P = torch.arange(keys.shape[2], device=keys.device)
            length_B1 = torch.tensor(self.lengths, device=keys.device)[:, None]
            zeros = torch.zeros(
                len(self.lengths), keys.shape[2], dtype=keys.dtype, device=keys.device
            )
            self.bias = zeros.masked_fill(place_P >= length_B1, -torch.inf)[:, None, None]

    def attend(self, layer: int, q_RHd: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Output [R, H, d] and log-sum [R, H] of each row over its prompt."""
        keys, values = self.keys_values[layer]
        num_heads, size = q_RHd.shape[1:]
        (num_prompts, per_prompt), num_kv_heads = self.grid, keys.shape[1]
        if self.slot_R is not None:
            grid = q_RHd.new_zeros(num_prompts * per_prompt, num_heads, size)
            grid[self.slot_R] = q_RHd
            q_RHd = grid
        # [B, G, J, S, d] -> [B, J, G * S, d]
        q = q_RHd.reshape(num_prompts, per_prompt, num_kv_heads, -1, size).transpose(1, 2)
        q = q.reshape(num_prompts, num_kv_heads, -1, size)
        out, lse = attend(q, keys, values, scale=scale, bias_A11K=self.bias)
        out = out.reshape(num_prompts, num_kv_heads, per_prompt, -1, size).transpose(1, 2)
        lse = lse.reshape(num_prompts, num_kv_heads, per_prompt, -1).transpose(1, 2)
        out_RHd, lse_RH = out.reshape(-1, num_heads, size), lse.reshape(-1, num_heads)
        if self.slot_R is not None:
            out_RHd, lse_RH = out_RHd[self.slot_R], lse_RH[self.slot_R]
        return out_RHd, lse_RH

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, and the prompts that nobody reads once they are many."""
        self.prompt_R = [self.prompt_R[row] for row in rows]
        read = sorted(set(self.prompt_R))
        if len(read) <= 0.75 * len(self.lengths):
            index = torch.tensor(read, device=self.keys_values[0][0].device, dtype=torch.long)
            for layer, (keys, values) in enumerate(self.keys_values):  # one at a time: memory
                self.keys_values[layer] = keys[index], values[index]
            self.lengths = [self.lengths[prompt] for prompt in read]
            number = {prompt: place for place, prompt in enumerate(read)}
            self.prompt_R = [number[prompt] for prompt in self.prompt_R]
        if self.prompt_R:
            self._lay_out()


class GroupCache:
    """The buckets of all prompts, and the rows' own keys and values in buffers of their full length.

    The buffers are made whole at the start: what is planned for is what is taken, and nothing is copied
    while a completion grows.
    """

    def __init__(self, buckets: list[Bucket], max_tokens: int) -> None:
        self.buckets = buckets
        self.length = 0  # own tokens stored by every row
        num_rows = sum(len(bucket.prompt_R) for bucket in buckets)
        self._own = [
            (self._empty(keys, num_rows, max_tokens), self._empty(values, num_rows, max_tokens))
            for keys, values in buckets[0].keys_values
        ]

    @staticmethod
    def _empty(like: Tensor, num_rows: int, capacity: int) -> Tensor:
        return like.new_empty(num_rows, like.shape[1], capacity, like.shape[3])

    def attend(
        self, layer: int, q_RHd: Tensor, k_RJd: Tensor, v_RJd: Tensor, scale: float
    ) -> Tensor:
        """Store a layer's key and value of the present token and attend: [R, H * d]."""
        keys, values = self._own[layer]
        keys[:, :, self.length] = k_RJd
        values[:, :, self.length] = v_RJd
        stop = self.length + 1
        num_rows, num_heads, size = q_RHd.shape
        q_RJSd = q_RHd.reshape(num_rows, keys.shape[1], -1, size)
        own, own_lse = attend(q_RJSd, keys[:, :, :stop], values[:, :, :stop], scale=scale)
        own_RHd, own_lse_RH = own.reshape(q_RHd.shape), own_lse.reshape(num_rows, num_heads)
        parts, start = [], 0
        for bucket in self.buckets:
            until = start + len(bucket.prompt_R)
            parts.append(bucket.attend(layer, q_RHd[start:until], scale))
            start = until
        out_RHd = parts[0][0] if len(parts) == 1 else torch.cat([out for out, _ in parts])
        lse_RH = parts[0][1] if len(parts) == 1 else torch.cat([lse for _, lse in parts])
        return merge(out_RHd, lse_RH, own_RHd, own_lse_RH).reshape(num_rows, -1)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these (ascending)."""
        index = torch.tensor(rows, device=self._own[0][0].device)
        for layer, buffers in enumerate(self._own):
            self._own[layer] = (self._kept(buffers[0], index), self._kept(buffers[1], index))
        start, buckets = 0, []
        for bucket in self.buckets:
            until = start + len(bucket.prompt_R)
            bucket.keep([row - start for row in rows if start <= row < until])
            start = until
            if bucket.prompt_R:
                buckets.append(bucket)
        self.buckets = buckets

    def _kept(self, old: Tensor, index: Tensor) -> Tensor:
        new = self._empty(old, len(index), old.shape[2])
        new[:, :, : self.length] = old[index, :, : self.length]
        return new


def bucket_prompts(lengths: Sequence[int]) -> list[list[int]]:
    """Prompts, shortest first, in buckets of similar length."""
    buckets: list[list[int]] = []
    for prompt in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not buckets or lengths[prompt] > GROWTH * lengths[buckets[-1][0]]:
            buckets.append([])
        buckets[-1].append(prompt)
    return buckets


def pad_prompts(
    layers: list[tuple[Tensor, Tensor]], buckets: Sequence[Sequence[tuple[int, int]]]
) -> list[list[tuple[Tensor, Tensor]]]:
    """Keys and values [F, J, d] of prompts end to end -> [B, J, P, d], for each bucket and layer.

    Args:
        layers: emptied on the way, so that there are never two copies of all of it.
        buckets: where each prompt of each bucket starts and stops in F.
    """
    last, device = layers[0][0].shape[0] - 1, layers[0][0].device
    indices = [_index_of(spans, last).to(device) for spans in buckets]
    padded: list[list[tuple[Tensor, Tensor]]] = [[] for _ in buckets]
    while layers:
        keys, values = layers.pop(0)
        for index_BP, found in zip(indices, padded, strict=True):
            found.append((_rows(keys, index_BP), _rows(values, index_BP)))
    return padded


def _index_of(spans: Sequence[tuple[int, int]], last: int) -> Tensor:
    """Rows [B, P] of each prompt's tokens; what lies behind a shorter one is hidden later."""
    longest = max(stop - start for start, stop in spans)
    if any(stop - start < longest for start, stop in spans):
        longest += -longest % BIAS_ALIGNMENT
    return torch.tensor([[min(start + i, last) for i in range(longest)] for start, _ in spans])


def _rows(tensor_FJd: Tensor, index_BP: Tensor) -> Tensor:
    return tensor_FJd[index_BP].transpose(1, 2).contiguous()
