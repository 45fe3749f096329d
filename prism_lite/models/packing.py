"""Shared-prefix trees: a prompt once, its continuations as branches, many trees in one forward.

Each branch token sees the prompt and its own branch; M-RoPE positions of every branch start right after
the prompt. A pack is one row without padding: the prompts of all trees, then all branches, end to end.
Log-probs and gradients equal those of the unpacked sequences (tests/unit/models/test_packing.py).

Shape letters: B trees, F tokens of a pack, R branches of all trees, N branch tokens of all branches
(branch after branch), P prompt tokens, C tokens of one branch, D hidden, d head size.
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
from prism_lite.models.tree_attention import AttentionKind, prepare
from prism_lite.models.vision import PictureFeatures

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Tree:
    """One prompt and the token ids (each int64 [C], C >= 1) of its branches, possibly none."""

    prompt: Prompt
    branches: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        assert all(len(branch) for branch in self.branches)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + sum(len(branch) for branch in self.branches)


@dataclass(frozen=True, eq=False)
class PromptStates:
    """A prompt after the decoder.

    Attributes:
        keys_values: per layer, [heads, P, d] each.
        last_D: hidden state of the last token, after the final norm.
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
        layout: positions of prompts and branches.
        predictor_N: row of the hidden states that predicts each branch token.
        target_N: the branch tokens.
        branch_N: index in 0..R-1 of each token's branch.
        last_R: row of the hidden states of each branch's last token.
        branch_lengths: tokens of each branch.
    """

    prompts: tuple[Prompt, ...]
    token_ids_F: Tensor
    position_ids_3F: Tensor
    is_picture_F: Tensor
    layout: TreeLayout
    predictor_N: Tensor
    target_N: Tensor
    branch_N: Tensor
    last_R: Tensor
    branch_lengths: tuple[int, ...]

    @property
    def num_branches(self) -> int:
        return self.last_R.shape[0]


def greedy_batches(items: Iterable[T], size: Callable[[T], int], room: int) -> list[list[T]]:
    """Split items, in order, into batches of total size at most `room`; a larger item gets its own."""
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
        branches_per_unit: number of neighbouring branches that stay in one pack.

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
        without_prompts: leave the prompts out; their states are given to `forward_branches`, whose hidden
            states begin with one row per prompt, of its last token.
    """
    prompts = tuple(tree.prompt for tree in trees)
    branches = [branch for tree in trees for branch in tree.branches]
    packed_prompts = () if without_prompts else prompts
    prompt_spans = _spans([0 if without_prompts else len(prompt) for prompt in prompts], 0)
    num_prompt_tokens = prompt_spans[-1][1]
    branch_spans = _spans([_num_tokens(tree.branches) for tree in trees], num_prompt_tokens)
    num_branch_tokens, longest = _num_tokens(branches), max(map(len, branches), default=0)

    tree_R = torch.tensor([i for i, tree in enumerate(trees) for _ in tree.branches]).long()
    length_R = torch.tensor([*map(len, branches)]).long()
    stop_R = length_R.cumsum(0)
    branch_N = torch.arange(len(branches)).repeat_interleave(
        length_R, output_size=num_branch_tokens
    )
    offset_N = torch.arange(num_branch_tokens) - (stop_R - length_R)[branch_N]  # in its branch
    # All branches start at the position after their prompt, the same on the three M-RoPE axes.
    position_N = torch.tensor([prompt.next_position for prompt in prompts])[tree_R][branch_N]
    position_N += offset_N

    # Rows of the hidden states: the prompts' tokens (or one row per prompt), then the branch tokens.
    # A token is predicted by the row before it, a branch's first token by its prompt's last token.
    first_row = len(trees) if without_prompts else num_prompt_tokens
    last_row_B = torch.tensor(
        range(len(trees)) if without_prompts else [stop - 1 for _, stop in prompt_spans]
    )
    row_before_N = first_row + torch.arange(num_branch_tokens) - 1
    predictor_N = torch.where(offset_N == 0, last_row_B[tree_R][branch_N], row_before_N)
    empty = torch.zeros(0, dtype=torch.long)  # torch.cat needs a tensor if there are no branches
    return Pack(
        prompts=prompts,
        token_ids_F=torch.cat([*(prompt.token_ids_P for prompt in packed_prompts), *branches]),
        position_ids_3F=torch.cat(
            [*(prompt.position_ids_3P for prompt in packed_prompts), position_N.expand(3, -1)], 1
        ),
        is_picture_F=torch.cat(
            [
                *(prompt.is_picture_P for prompt in packed_prompts),
                torch.zeros(num_branch_tokens).bool(),
            ]
        ),
        layout=TreeLayout(
            prompts=prompt_spans,
            branches=branch_spans,
            grid_shape=(len(branches), longest),
            cell_N=branch_N * longest + offset_N,
        ),
        predictor_N=predictor_N,
        target_N=torch.cat([empty, *branches]),
        branch_N=branch_N,
        last_R=first_row + stop_R - 1,
        branch_lengths=tuple(map(len, branches)),
    )


def _spans(lengths: Sequence[int], start: int) -> tuple[tuple[int, int], ...]:
    """Return start and stop of segments of these lengths, end to end from `start`."""
    return tuple(itertools.pairwise(itertools.accumulate(lengths, initial=start)))


def forward_pack(
    core: Core,
    pack: Pack,
    features: Sequence[PictureFeatures],
    *,
    attention: AttentionKind = "parts",
    checkpoint: bool = True,
) -> Tensor:
    """Run the decoder over a pack.

    Args:
        core: the Qwen3-VL, under any adapters.
        pack: the layout, prompts included.
        features: of every picture of `pack.prompts`, in order.
        attention: see tree_attention.py.
        checkpoint: False stores all activations even if gradient checkpointing is on: required if hooks
            of the forward are removed before the backward, which must not run it again.

    Returns:
        hidden_FD: final hidden states (after the last norm), prompts first, then branches.
    """
    if family.decoder(core).gradient_checkpointing:
        # transformers checkpoints in training mode only; Qwen3-VL has no dropout to switch on
        core.train(checkpoint and torch.is_grad_enabled())
    return _run(core, pack, features, pack.layout, attention)


def embed_pack(
    core: Core, pack: Pack, features: Sequence[PictureFeatures]
) -> tuple[Tensor, list[Tensor]]:
    """Return input embeddings [F, D], pictures inserted, and the DeepStack levels of all pictures."""
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
    core: Core, pack: Pack, states: Sequence[PromptStates], *, attention: AttentionKind = "parts"
) -> Tensor:
    """Run the decoder over the branches of a pack made `without_prompts`.

    The prompts' keys and values are constants: they get no gradient. Nothing is checkpointed.

    Args:
        states: of each tree's prompt, under the active adapters.

    Returns:
        hidden states: first the last token of every prompt [B, D], then the branch tokens [N, D].
    """
    layers = zip(*(state.keys_values for state in states), strict=True)
    layout = dataclasses.replace(pack.layout, prefix=tuple(layers))
    core.train(False)
    hidden_ND = _run(core, pack, [], layout, attention)
    return torch.cat([torch.stack([state.last_D for state in states]), hidden_ND])


@torch.no_grad()
def prompt_states(
    core: Core,
    prompts: Sequence[Prompt],
    features: Sequence[PictureFeatures],
    *,
    attention: AttentionKind = "parts",
) -> list[PromptStates]:
    """Return keys, values and last hidden state of prompts, by one forward under the active adapters."""
    pack = pack_trees([Tree(prompt, ()) for prompt in prompts])
    core.train(False)
    cache = DynamicCache()
    hidden_FD = _run(core, pack, features, pack.layout, attention, cache)
    layers: list[Any] = cache.layers
    return [
        PromptStates(
            tuple(
                (layer.keys[0, :, start:stop].clone(), layer.values[0, :, start:stop].clone())
                for layer in layers
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
    attention: AttentionKind,
    cache: DynamicCache | None = None,
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
