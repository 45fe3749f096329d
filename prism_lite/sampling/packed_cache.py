"""Keys and values while groups decode on a card with attention over packed sequences (sm80 and newer).

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
from prism_lite.models.attention import PackedAttention
from prism_lite.sampling.decoder import LeanDecoder


class PackedCache:
    """The buffers of all layers, and where each sequence begins in them."""

    def __init__(
        self,
        layers: list[tuple[Tensor, Tensor]],
        lengths: Sequence[int],
        rows: Sequence[int],
        *,
        max_tokens: int,
        num_shared: int,
        attention: PackedAttention,
    ) -> None:
        """
        Args:
            layers: keys and values [F, J, d] of the prompts end to end; emptied on the way, so that there
                are never two copies of everything.
            lengths: tokens of each prompt.
            rows: number of rows of each prompt; a prompt's rows are neighbours.
            max_tokens: slots of each row.
            num_shared: S, query heads that share a key head.
        """
        self._lengths = list(lengths)
        self._prompt_R = [prompt for prompt, count in enumerate(rows) for _ in range(count)]
        self._num_slots, self._num_shared, self._attention = max_tokens, num_shared, attention
        self._num_prompt_tokens, self._device = sum(lengths), layers[0][0].device
        num_tokens = self._num_prompt_tokens + len(self._prompt_R) * max_tokens
        self._buffers: list[Tensor] = []
        while layers:
            self._buffers.append(_buffer(*layers.pop(0), num_tokens))
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
        self._most_queries = max(counts)
        self._most_keys = max(num_slots, *self._lengths)

    def reserve(self, num_tokens: int) -> bool:
        """Return whether shapes have changed: they are those of all slots from the start."""
        assert num_tokens <= self._num_slots
        return False

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
        out_NJd, lse_JN = self._attention(
            q_NJd,
            buffer[:, :num_kv_heads],
            buffer[:, num_kv_heads:],
            self._begin_q,
            self._begin_k,
            self._most_queries,
            self._most_keys,
        )
        return tk.merge_halves(out_NJd, lse_JN, len(self._prompt_R))

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these (ascending); the others' slots move up in their buffer."""
        index = torch.tensor(rows, device=self._device)
        first, num_slots = self._num_prompt_tokens, self._num_slots
        stop = first + len(rows) * num_slots
        for layer, buffer in enumerate(self._buffers):
            own = buffer[first:].view(-1, num_slots, *buffer.shape[1:])
            buffer[first:stop] = own[index].flatten(0, 1)
            self._buffers[layer] = buffer[:stop]
        self._prompt_R = [self._prompt_R[row] for row in rows]
        self._lay_out()


def _buffer(k_FJd: Tensor, v_FJd: Tensor, num_tokens: int) -> Tensor:
    """Return a layer's buffer [tokens, 2 * J, d], keys before values, with the prompts' first."""
    num_prompt_tokens, num_kv_heads, size = k_FJd.shape
    buffer = k_FJd.new_empty(num_tokens, 2 * num_kv_heads, size)
    buffer[:num_prompt_tokens, :num_kv_heads] = k_FJd
    buffer[:num_prompt_tokens, num_kv_heads:] = v_FJd
    return buffer
