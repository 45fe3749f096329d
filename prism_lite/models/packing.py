"""Shared-prefix trees: a prompt once, its continuations as branches, many trees in one forward.

A tree is a prompt with branches. Each branch token sees the prompt and its own branch; M-RoPE
positions of every branch start right after the prompt. A pack is one row without padding: the prompts
of all trees, then all branches, end to end. Log-probs and gradients equal those of the unpacked
sequences (tests/unit/test_packing.py).

Shape letters: B trees, F tokens of a pack, R branches of all trees, N branch tokens of all branches
(branch after branch), P prompt tokens, C tokens of one branch, D hidden.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from prism_lite.models.attention import TreeLayout
from prism_lite.models.families import qwen3_vl as family
from prism_lite.models.families.qwen3_vl import Core
from prism_lite.models.prompts import Prompt
from prism_lite.models.tree_attention import Kind, prepare
from prism_lite.models.vision import PictureFeatures

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Tree:
    """One prompt and the token ids (each int64 [C], C >= 1) of its branches, if it has any."""

    prompt: Prompt
    branches: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        assert all(len(branch) for branch in self.branches)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + sum(len(branch) for branch in self.branches)


@dataclass(frozen=True, eq=False)
class PromptStates:
    """What the decoder keeps of a prompt: per layer keys and values [heads, P, d]; last hidden state.

    Attributes:
        last_D: of the prompt's last token, after the final norm.
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    last_D: Tensor

    @property
    def num_bytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.keys_values)


@dataclass(frozen=True, eq=False)
class Pack:
    """Trees laid out for one forward; build it with `pack_trees`.

    Attributes:
        prompts: the B prompts.
        token_ids_F: int64, all prompts, then all branches.
        position_ids_3F: int64.
        is_picture_F: bool, True at visual tokens.
        layout: where prompts and branches lie.
        predictor_N: row of the hidden states that predicts each branch token.
        own_N: row of the hidden states of each branch token itself.
        target_N: the branch tokens.
        branch_N: index in 0..R-1 of the branch each token belongs to.
        last_R: row of the hidden states of each branch's last token.
        branch_lengths: tokens of each branch.
    """

    prompts: tuple[Prompt, ...]
    token_ids_F: Tensor
    position_ids_3F: Tensor
    is_picture_F: Tensor
    layout: TreeLayout
    predictor_N: Tensor
    own_N: Tensor
    target_N: Tensor
    branch_N: Tensor
    last_R: Tensor
    branch_lengths: tuple[int, ...]

    @property
    def num_branches(self) -> int:
        return self.last_R.shape[0]


def greedy_batches(items: Iterable[T], size: Callable[[T], int], room: int) -> list[list[T]]:
    """Split items, in order, into batches whose sizes sum to at most `room`; a larger item is alone."""
    batches: list[list[T]] = []
    num_used = 0
    for item in items:
        if not batches or num_used + size(item) > room:
            batches.append([])
            num_used = 0
        batches[-1].append(item)
        num_used += size(item)
    return batches


def split_trees(
    trees: Sequence[Tree], max_pack_tokens: int, *, branches_per_unit: int = 1
) -> list[list[Tree]]:
    """Distribute trees over packs of at most `max_pack_tokens` tokens, in order.

    A tree too large for one pack is split: its prompt is repeated with part of the branches each time.

    Args:
        branches_per_unit: so many neighbouring branches stay in one pack.

    Raises:
        ValueError: a prompt with a single unit of branches is already too large.
    """
    pieces = (
        piece for tree in trees for piece in _split_tree(tree, max_pack_tokens, branches_per_unit)
    )
    return greedy_batches(pieces, lambda piece: piece.num_tokens, max_pack_tokens)


def _split_tree(tree: Tree, max_pack_tokens: int, branches_per_unit: int) -> list[Tree]:
    assert len(tree.branches) % branches_per_unit == 0
    room = max_pack_tokens - len(tree.prompt)
    units = [
        tree.branches[start : start + branches_per_unit]
        for start in range(0, len(tree.branches), branches_per_unit)
    ]
    for unit in units:
        if _num_tokens(unit) > room:
            raise ValueError(
                f"prompt {tree.prompt.id} with one completion has {len(tree.prompt) + _num_tokens(unit)} "
                f"tokens, more than model.max_pack_tokens = {max_pack_tokens}. Raise it, shorten the "
                "completion (sampling.max_completion_tokens, where it was sampled) or lower "
                "model.max_pixels."
            )
    batches = greedy_batches(units, _num_tokens, room) or [[]]
    return [Tree(tree.prompt, tuple(itertools.chain(*batch))) for batch in batches]


def _num_tokens(branches: Sequence[Tensor]) -> int:
    return sum(map(len, branches))


def pack_trees(trees: Sequence[Tree], *, without_prompts: bool = False) -> Pack:
    """Lay out trees for one forward.

    Args:
        without_prompts: leave the prompts out; their states come from elsewhere. The hidden states then
            have a row for the last token of every prompt first (`forward_branches`).
    """
    prompts = tuple(tree.prompt for tree in trees)
    prompt_lengths = [0 if without_prompts else len(prompt) for prompt in prompts]
    branch_lengths = [len(branch) for tree in trees for branch in tree.branches]
    prompt_spans = _spans(prompt_lengths, 0)
    num_prompt_tokens = sum(prompt_lengths)
    branch_spans = _spans([sum(map(len, tree.branches)) for tree in trees], num_prompt_tokens)
    branches = [branch for tree in trees for branch in tree.branches]
    kept = [] if without_prompts else prompts
    offsets_C = [torch.arange(length) for length in branch_lengths]
    starts = [tree.prompt.next_position for tree in trees for _ in tree.branches]
    positions = [
        (start + offset).expand(3, -1) for start, offset in zip(starts, offsets_C, strict=True)
    ]
    longest = max(branch_lengths, default=0)
    cells = [number * longest + offset for number, offset in enumerate(offsets_C)]
    first_row = len(trees) if without_prompts else num_prompt_tokens
    num_branch_tokens = sum(branch_lengths)
    own_N = first_row + torch.arange(num_branch_tokens)
    length_R = torch.tensor(branch_lengths, dtype=torch.long)
    last_R = first_row + length_R.cumsum(0) - 1
    predictor_N = own_N - 1
    last_prompt_rows = (
        range(len(trees)) if without_prompts else [stop - 1 for _, stop in prompt_spans]
    )
    predictor_N[last_R - length_R + 1 - first_row] = torch.tensor(
        [row for row, tree in zip(last_prompt_rows, trees, strict=True) for _ in tree.branches],
        dtype=torch.long,
    )
    empty = torch.zeros(0, dtype=torch.long)
    return Pack(
        prompts=prompts,
        token_ids_F=torch.cat([*(prompt.token_ids_P for prompt in kept), *branches]),
        position_ids_3F=torch.cat([*(prompt.position_ids_3P for prompt in kept), *positions], 1),
        is_picture_F=torch.cat(
            [
                *(prompt.is_picture_P for prompt in kept),
                torch.zeros(num_branch_tokens, dtype=torch.bool),
            ]
        ),
        layout=TreeLayout(
            prompts=prompt_spans,
            branches=branch_spans,
            grid_shape=(len(branches), longest),
            cell_N=torch.cat([empty, *cells]),
        ),
        predictor_N=predictor_N,
        own_N=own_N,
        target_N=torch.cat([empty, *branches]),
        branch_N=torch.arange(len(branches)).repeat_interleave(length_R),
        last_R=last_R,
        branch_lengths=tuple(branch_lengths),
    )


def _spans(lengths: Sequence[int], start: int) -> tuple[tuple[int, int], ...]:
    stops = list(itertools.accumulate(lengths, initial=start))
    return tuple(itertools.pairwise(stops))


def forward_pack(
    core: Core,
    pack: Pack,
    features: Sequence[PictureFeatures],
    *,
    attention: Kind = "parts",
    checkpoint: bool = True,
) -> Tensor:
    """Run the decoder over a pack.

    Args:
        core: the Qwen3-VL, whichever adapters are active.
        pack: the layout, prompts included.
        features: of every picture of `pack.prompts`, in order.
        attention: see tree_attention.py.
        checkpoint: False keeps all activations even where gradient checkpointing is on: the backward
            must not run the forward again once hooks have been taken off.

    Returns:
        hidden_FD: final hidden states (after the last norm), prompts first, then branches.
    """
    if family.decoder(core).gradient_checkpointing:
        # transformers checkpoints in training mode only; Qwen3-VL has no dropout to switch on
        core.train(checkpoint and torch.is_grad_enabled())
    return _run(core, pack, features, pack.layout, attention, None)


def embed_pack(
    core: Core, pack: Pack, features: Sequence[PictureFeatures]
) -> tuple[Tensor, list[Tensor]]:
    """Input embeddings [F, D], pictures in place, and the DeepStack levels of all visual tokens."""
    embeds_FD = core.get_input_embeddings()(pack.token_ids_F.to(core.device))
    if not features:
        return embeds_FD, []
    merged_ND = torch.cat([picture.merged_ND for picture in features]).to(embeds_FD.dtype)
    is_picture_F1 = pack.is_picture_F.to(core.device)[:, None]
    levels = zip(*(picture.deepstack_ND for picture in features), strict=True)
    return (
        embeds_FD.masked_scatter(is_picture_F1.expand_as(embeds_FD), merged_ND),
        [torch.cat(level) for level in levels],
    )


def forward_branches(
    core: Core, pack: Pack, states: Sequence[PromptStates], *, attention: Kind = "parts"
) -> Tensor:
    """Run the decoder over the branches of a pack made `without_prompts`.

    The prompts' keys and values are constants: no gradient reaches them. Nothing is checkpointed.

    Args:
        states: of each tree's prompt, under the adapters that are active now.

    Returns:
        hidden states: first the last token of every prompt [B, D], then the branch tokens [N, D].
    """
    layers = zip(*(state.keys_values for state in states), strict=True)
    layout = dataclasses.replace(pack.layout, prefix=tuple(layers))
    core.train(False)
    hidden_ND = _run(core, pack, [], layout, attention, None)
    return torch.cat([torch.stack([state.last_D for state in states]), hidden_ND])


@torch.no_grad()
def prompt_states(
    core: Core,
    prompts: Sequence[Prompt],
    features: Sequence[PictureFeatures],
    *,
    attention: Kind = "parts",
) -> list[PromptStates]:
    """Keys, values and last hidden state of prompts, in one forward under the active adapters."""
    pack = pack_trees([Tree(prompt, ()) for prompt in prompts])
    core.train(False)
    cache: Any = DynamicCache()
    hidden_FD = _run(core, pack, features, pack.layout, attention, cache)
    layers = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
    return [
        PromptStates(
            tuple(
                (keys[:, start:stop].clone(), values[:, start:stop].clone())
                for keys, values in layers
            ),
            hidden_FD[stop - 1].clone(),
        )
        for start, stop in pack.layout.prompts
    ]


def _run(
    core: Core,
    pack: Pack,
    features: Sequence[PictureFeatures],
    layout: TreeLayout,
    attention: Kind,
    cache: Any,
) -> Tensor:
    embeds_FD, deepstack = embed_pack(core, pack, features)
    layout = dataclasses.replace(layout, cell_N=layout.cell_N.to(core.device))
    return family.run_decoder(
        core,
        embeds_FD,
        pack.position_ids_3F,
        is_picture_F=pack.is_picture_F,
        deepstack=deepstack,
        cache=cache,
        tree_call=prepare(core, layout, attention),
    )
