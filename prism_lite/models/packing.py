"""Shared-prefix trees: a prompt once, its continuations as branches, many trees in one forward.

A tree is `[prompt | branch 0 | branch 1 | ...]`. Each branch token sees the prompt and its own branch;
M-RoPE positions of every branch start right after the prompt. Log-probs and gradients equal those of
the unpacked sequences (tests/unit/test_packing.py).

Shape letters: B trees, T tokens of the longest tree, F = B * T flat positions, R branches of all trees,
N branch tokens of all branches (branch after branch), P prompt tokens, C tokens of one branch, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prism_lite.models.prompts import Prompt
from prism_lite.models.vision import PictureFeatures


@dataclass(frozen=True, eq=False)
class Tree:
    """One prompt and the token ids (each int64 [C], C >= 1) of its branches."""

    prompt: Prompt
    branches: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        assert self.branches and all(len(branch) for branch in self.branches)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + sum(len(branch) for branch in self.branches)


@dataclass(frozen=True, eq=False)
class Pack:
    """Trees laid out for one forward; build it with `pack_trees`.

    Attributes:
        prompts: the B prompts, one per row.
        token_ids_BT: int64, right-padded.
        position_ids_3BT: int64.
        allowed_BTT: bool, True where query (dim 1) may attend to key (dim 2).
        is_picture_BT: bool, True at visual tokens.
        predictor_N: flat position whose hidden state predicts each branch token.
        own_N: flat position of each branch token itself.
        target_N: the branch tokens.
        branch_N: index in 0..R-1 of the branch each token belongs to.
        last_R: flat position of each branch's last token.
    """

    prompts: tuple[Prompt, ...]
    token_ids_BT: Tensor
    position_ids_3BT: Tensor
    allowed_BTT: Tensor
    is_picture_BT: Tensor
    predictor_N: Tensor
    own_N: Tensor
    target_N: Tensor
    branch_N: Tensor
    last_R: Tensor

    @property
    def num_branches(self) -> int:
        return self.last_R.shape[0]


def split_trees(
    trees: Sequence[Tree], max_pack_tokens: int, *, branches_per_unit: int = 1
) -> list[list[Tree]]:
    """Distribute trees over packs of at most `max_pack_tokens` padded tokens, in order.

    A tree too large for one pack is split: its prompt is repeated with part of the branches each time.

    Args:
        branches_per_unit: so many neighbouring branches stay in one pack.

    Raises:
        ValueError: a prompt with a single unit of branches is already too large.
    """
    packs: list[list[Tree]] = []
    pieces = (p for tree in trees for p in _split_tree(tree, max_pack_tokens, branches_per_unit))
    for tree in pieces:
        grown = [*packs[-1], tree] if packs else []
        if grown and len(grown) * max(t.num_tokens for t in grown) <= max_pack_tokens:
            packs[-1] = grown
        else:
            packs.append([tree])
    return packs


def _split_tree(tree: Tree, max_pack_tokens: int, branches_per_unit: int) -> list[Tree]:
    assert len(tree.branches) % branches_per_unit == 0
    pieces: list[list[Tensor]] = [[]]
    room = max_pack_tokens - len(tree.prompt)
    for start in range(0, len(tree.branches), branches_per_unit):
        unit = tree.branches[start : start + branches_per_unit]
        size = sum(map(len, unit))
        if size > room:
            raise ValueError(
                f"prompt {tree.prompt.id} with one completion has {len(tree.prompt) + size} "
                f"tokens, more than model.max_pack_tokens = {max_pack_tokens}. Raise it, or lower "
                "sampling.max_completion_tokens or model.max_pixels."
            )
        if sum(map(len, pieces[-1])) + size > room:
            pieces.append([])
        pieces[-1].extend(unit)
    return [Tree(tree.prompt, tuple(piece)) for piece in pieces]


def pack_trees(trees: Sequence[Tree], *, pad_id: int) -> Pack:
    """Lay out trees as rows of one batch, padded on the right to the longest."""
    num_rows, length = len(trees), max(tree.num_tokens for tree in trees)
    token_ids_BT = torch.full((num_rows, length), pad_id)
    position_ids_3BT = torch.zeros(3, num_rows, length, dtype=torch.long)
    segment_BT = torch.full((num_rows, length), -1)  # 0 prompt, 1.. branches, -1 padding
    is_picture_BT = torch.zeros(num_rows, length, dtype=torch.bool)
    predictors, owns, branch_ids, lasts = [], [], [], []
    for row, tree in enumerate(trees):
        prompt, num_prompt = tree.prompt, len(tree.prompt)
        token_ids_BT[row, :num_prompt] = prompt.token_ids_P
        position_ids_3BT[:, row, :num_prompt] = prompt.position_ids_3P
        segment_BT[row, :num_prompt] = 0
        is_picture_BT[row, :num_prompt] = prompt.is_picture_P
        start = num_prompt
        for number, branch in enumerate(tree.branches, 1):
            stop = start + len(branch)
            token_ids_BT[row, start:stop] = branch
            position_ids_3BT[:, row, start:stop] = prompt.next_position + torch.arange(len(branch))
            segment_BT[row, start:stop] = number
            own = row * length + torch.arange(start, stop)
            predictor = own - 1
            predictor[0] = row * length + num_prompt - 1
            predictors.append(predictor)
            owns.append(own)
            branch_ids.append(torch.full((len(branch),), len(lasts)))
            lasts.append(int(own[-1]))
            start = stop
    return Pack(
        prompts=tuple(tree.prompt for tree in trees),
        token_ids_BT=token_ids_BT,
        position_ids_3BT=position_ids_3BT,
        allowed_BTT=_tree_mask(segment_BT),
        is_picture_BT=is_picture_BT,
        predictor_N=torch.cat(predictors),
        own_N=torch.cat(owns),
        target_N=torch.cat([branch for tree in trees for branch in tree.branches]),
        branch_N=torch.cat(branch_ids),
        last_R=torch.tensor(lasts),
    )


def _tree_mask(segment_BT: Tensor) -> Tensor:
    """Causal, within the prompt and the own branch. Padding sees itself: no row of softmax is empty."""
    query, key = segment_BT[:, :, None], segment_BT[:, None, :]
    num_tokens = segment_BT.shape[1]
    causal = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()
    itself = torch.eye(num_tokens, dtype=torch.bool)
    return (causal & (key >= 0) & ((key == 0) | (key == query)) & (query >= 0)) | itself


def forward_pack(
    core: Any, pack: Pack, features: Sequence[PictureFeatures], *, checkpoint: bool = True
) -> Tensor:
    """Run the decoder over a pack.

    Args:
        core: the Qwen3-VL, whichever adapters are active.
        pack: the layout.
        features: of every picture of `pack.prompts`, in order.
        checkpoint: False keeps all activations even where gradient checkpointing is on: the backward
            must not run the forward again once hooks have been taken off.

    Returns:
        hidden_FD: final hidden states (after the last norm), flat over rows and positions.
    """
    device = core.device
    if core.model.language_model.gradient_checkpointing:
        # transformers checkpoints in training mode only; Qwen3-VL has no dropout to switch on
        core.train(checkpoint and torch.is_grad_enabled())
    embeds_BTD = core.get_input_embeddings()(pack.token_ids_BT.to(device))
    is_picture_BT = pack.is_picture_BT.to(device)
    deepstack: list[Tensor] | None = None
    if features:
        merged = torch.cat([picture.merged_ND for picture in features])
        embeds_BTD = embeds_BTD.masked_scatter(
            is_picture_BT[..., None].expand_as(embeds_BTD), merged.to(embeds_BTD.dtype)
        )
        deepstack = [
            torch.cat(level) for level in zip(*(f.deepstack_ND for f in features), strict=True)
        ]
    mask_B1TT = pack.allowed_BTT[:, None].to(device)
    if core.config.text_config._attn_implementation == "eager":  # adds its mask to the logits
        lowest = torch.finfo(embeds_BTD.dtype).min
        mask_B1TT = torch.where(mask_B1TT, 0.0, lowest).to(embeds_BTD.dtype)
    output = core.model.language_model(
        inputs_embeds=embeds_BTD,
        position_ids=pack.position_ids_3BT.to(device),
        attention_mask=mask_B1TT,
        visual_pos_masks=is_picture_BT if features else None,
        deepstack_visual_embeds=deepstack,
        use_cache=False,
    )
    return output.last_hidden_state.flatten(0, 1)
