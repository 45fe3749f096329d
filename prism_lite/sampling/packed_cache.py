"""Keys and values while groups decode on a card.

As in kv_cache.py, a prompt's keys are stored once for all its rows. Here each layer has one buffer, the
prompts end to end and then a span of slots for each row, and one call attends to all of it: every query
occurs twice, in its prompt's sequence with those of its neighbours, and with its row's own tokens. The two
outputs are merged by their log-sums. Where a row's tokens end is in a tensor: shapes are fixed meanwhile.

Shape letters: R rows, C slots of a row, F tokens of all prompts, J key-value heads, S = H / J query heads
of each, N = 2 * R * S queries, d head size. Heads that share a key head are queries of one head.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

import triton_kernels as tk
from prism_lite.models.packed_attention import PackedAttention
from prism_lite.sampling.decoder import LeanDecoder

_MOVED_AT_ONCE = 8  # rows: as many are copied, in one layer, while others are dropped


class PackedCache:
    """The buffers of all layers, and where each sequence begins in them."""

    def __init__(
        self,
        buffers: list[Tensor],
        lengths: Sequence[int],
        rows: Sequence[int],
        *,
        max_tokens: int,
        num_shared: int,
        attention: PackedAttention,
    ) -> None:
        """
        Args:
            buffers: keys and values [tokens, 2 * J, d] of each layer, keys before values: the prompts end
                to end, then `max_tokens` slots of each row. Changed in place.
            lengths: tokens of each prompt.
            rows: number of rows of each prompt; a prompt's rows are neighbours.
            num_shared: S, query heads that share a key head.
        """
        self._buffers, self._device = list(buffers), buffers[0].device
        self._lengths, self._num_prompt_tokens = list(lengths), sum(lengths)
        self._prompt_R = [prompt for prompt, count in enumerate(rows) for _ in range(count)]
        self._num_slots, self._num_shared, self._attention = max_tokens, num_shared, attention
        assert len(buffers[0]) == self._num_prompt_tokens + len(self._prompt_R) * max_tokens
        self._num_filled_1 = torch.zeros(1, dtype=torch.int32, device=self._device)
        self._lay_out()

    def _lay_out(self) -> None:
        """Compute where the sequences of the present rows begin, and each row's next slot."""
        num_rows, num_slots, shared = len(self._prompt_R), self._num_slots, self._num_shared
        counts = [shared * self._prompt_R.count(prompt) for prompt in range(len(self._lengths))]
        # A row's slots are two sequences: the filled ones, and the empty ones, which have no queries.
        num_queries = [*counts, *[shared, 0] * num_rows]
        num_keys = [*self._lengths, *[0, num_slots] * num_rows]
        ends_at_slot = [0] * len(counts) + [1, 0] * num_rows
        begin_q, begin_k, moves = (
            torch.tensor(values, dtype=torch.int32).to(self._device)
            for values in (
                (0, *accumulate(num_queries)),
                (0, *accumulate(num_keys)),
                (0, *ends_at_slot),
            )
        )
        self._begin_q, self._begin_k, self._moves = (
            begin_q,
            begin_k + moves * self._num_filled_1,
            moves,
        )
        self._slot_R = self._begin_k[len(counts) + 1 :: 2].long() - 1  # the slot filled last
        num_kv_heads = self._buffers[0].shape[1] // 2
        self._lse_slot_NJ = self._attention.lse_slots(num_queries, num_kv_heads).to(self._device)
        self._most_queries = max(counts)
        self._most_keys = max(num_slots, *self._lengths)

    def open_slot(self) -> None:
        """Begin the next token of every row."""
        self._num_filled_1.add_(1)
        self._begin_k.add_(self._moves)
        self._slot_R.add_(1)

    def attend_product(
        self, decoder: LeanDecoder, layer: int, qkv: Tensor, cos_R1d: Tensor, sin_R1d: Tensor
    ) -> Tensor:
        """Rotate a layer's queries and keys, store keys and values in the open slot, and attend."""
        buffer, num_kv_heads = self._buffers[layer], decoder.num_kv_heads
        q_NJd = tk.rotate_and_store(
            qkv,
            decoder.layers[layer].qk_norm,
            decoder.eps,
            cos_R1d,
            sin_R1d,
            buffer,
            self._slot_R,
        )
        out_NJd, lse = self._attention.attend(
            q_NJd,
            buffer[:, :num_kv_heads],
            buffer[:, num_kv_heads:],
            self._begin_q,
            self._begin_k,
            self._most_queries,
            self._most_keys,
        )
        return tk.merge_halves(out_NJd, lse, self._lse_slot_NJ, len(self._prompt_R))

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these (ascending); the others' slots move up in their buffer."""
        index = torch.tensor(rows, device=self._device)
        first, num_slots = self._num_prompt_tokens, self._num_slots
        for layer, buffer in enumerate(self._buffers):
            own = buffer[first:].view(-1, num_slots, *buffer.shape[1:])
            for start in range(0, len(rows), _MOVED_AT_ONCE):
                # rows only move up, so those of a later part are not overwritten yet
                part = index[start : start + _MOVED_AT_ONCE]
                own[start : start + len(part)] = own[part]
            self._buffers[layer] = buffer[: first + len(rows) * num_slots]
        self._prompt_R = [self._prompt_R[row] for row in rows]
        self._lay_out()
