"""The share of each token in the discriminator's scores of a completion, and the expert of each token.

The share of a token is the score of its part minus the score with the likeliest other token in its place
(likeliest for the frozen trunk, given the picture and the tokens before). A misread digit has a negative
share: with the digit that the trunk finds likeliest instead, the score is higher. Of 81 captions with one
misread digit (the recorded run's alignment, the first rollout of each prompt) that digit has the lowest
share of the digits in 68; by chance it would in 18. Shares do not sum to the score.

Shape letters: C tokens of one part, N tokens of both parts, V vocabulary, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prism_lite.discriminator.model import Discriminator
from prism_lite.discriminator.part_tokens import PartTokens, num_opening_tokens, part_texts
from prism_lite.models.backbone import Backbone
from prism_lite.models.packing import Tree, forward_branches, pack_trees
from prism_lite.models.prompts import Prompt
from prism_lite.parts import Parts
from prism_lite.types import Sample

MAX_SHARES = 96  # tokens of a part that get one: each takes a forward of the part
_CHANNELS = ("perception", "reasoning")
_DECIMALS = 3


def rows_with_shares(
    backbone: Backbone, discriminator: Discriminator, sample: Sample, completions: Sequence[Parts]
) -> list[dict[str, Any]]:
    """Return scores and token shares of the completions of a sample, the teacher's first.

    Returns:
        For each completion {"perception": score, "reasoning": score, "tokens": {channel: [[text, share,
        expert, likeliest other token], ...]}}. The tokens are those of the caption, and those of think
        and answer. Share and other token are None where no share was computed; the expert is the one with
        the largest weight in the last layer, None without a choice of experts.
    """
    prompt = backbone.prompt(sample)
    with torch.no_grad(), backbone.role("discriminator"):
        tokens = [discriminator.part_tokens(backbone, parts) for parts in completions]
        scores = discriminator.score_tokens(backbone, [(prompt, tokens)])
        weights = scores.weights_of_parts()
        rows = []
        for k, parts in enumerate(completions):
            score_of = (float(scores.perception_K[k]), float(scores.reasoning_K[k]))
            starts = _starts(backbone, discriminator, parts)
            others = _likeliest_others(backbone, discriminator, prompt, tokens[k])
            shares = _shares(
                backbone, discriminator, prompt, tokens[0], tokens[k], others, starts, score_of
            )
            row: dict[str, Any] = {
                name: round(score, _DECIMALS)
                for name, score in zip(_CHANNELS, score_of, strict=True)
            }
            row["tokens"] = {
                name: _token_lines(
                    backbone,
                    tokens[k].branches[channel],
                    others[channel],
                    weights[2 * k + channel][-1],
                    shares[channel],
                    starts[channel][0],
                )
                for channel, name in enumerate(_CHANNELS)
            }
            rows.append(row)
    return rows


def _starts(
    backbone: Backbone, discriminator: Discriminator, parts: Parts
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the first token of each part that is its own, and the first one after its opening tag.

    The reasoning part is read with the caption before it, which is not its own.
    """
    config = discriminator.config
    opening = num_opening_tokens(backbone, config)
    if not config.reasoning_sees_caption:
        return (0, opening[0]), (0, opening[1])
    before = len(part_texts(config, parts)[0]) + 1  # the caption and a line break
    ids_C = discriminator.part_tokens(backbone, parts).branches[1].tolist()
    first, num_characters = 0, 0
    while first < len(ids_C) - 1 and num_characters < before:
        num_characters += len(backbone.tokenizer.decode([ids_C[first]]))
        first += 1
    return (0, opening[0]), (first, first + opening[0])


def _likeliest_others(
    backbone: Backbone, discriminator: Discriminator, prompt: Prompt, tokens: PartTokens
) -> tuple[Tensor, Tensor]:
    """Return, for each token of both parts, the likeliest token other than itself, int64 [C] each."""
    pack = pack_trees([Tree(prompt, tokens.branches)], without_prompts=True)
    states = discriminator.prompt_cache.states(backbone, pack.prompts)
    hidden_FD = forward_branches(backbone.core, pack, states, attention=backbone.attention)
    other_N = []
    for rows, targets in zip(pack.predictor_N.split(256), pack.target_N.split(256), strict=True):
        logits_NV = hidden_FD[rows.to(hidden_FD.device)] @ backbone.head_weight.T
        logits_NV.scatter_(1, targets.to(logits_NV.device)[:, None], float("-inf"))
        other_N.append(logits_NV.argmax(1).cpu())
    perception_C, reasoning_C = torch.cat(other_N).split([len(ids_C) for ids_C in tokens.branches])
    return perception_C, reasoning_C


def _shares(
    backbone: Backbone,
    discriminator: Discriminator,
    prompt: Prompt,
    teacher: PartTokens,
    tokens: PartTokens,
    others: tuple[Tensor, Tensor],
    starts: tuple[tuple[int, int], tuple[int, int]],
    score_of: tuple[float, float],
) -> list[dict[int, float]]:
    """Return the shares of each part by the number of the token."""
    places = [
        range(first, len(ids_C) - 1)[:MAX_SHARES]  # without the end token
        for (_, first), ids_C in zip(starts, tokens.branches, strict=True)
    ]
    changed = [
        [_replaced(ids_C, place, other_C) for place in in_part]
        for ids_C, other_C, in_part in zip(tokens.branches, others, places, strict=True)
    ]
    num_changed = max(map(len, changed))
    # both parts are changed at once, since each is scored alone
    for ids_C, in_part in zip(tokens.branches, changed, strict=True):
        in_part += [ids_C] * (num_changed - len(in_part))
    completions = [
        PartTokens((perception_C, reasoning_C), tokens.lengths)
        for perception_C, reasoning_C in zip(*changed, strict=True)
    ]
    scores = discriminator.score_tokens(backbone, [(prompt, [teacher, *completions])])
    return [
        {
            place: score - without
            for place, without in zip(in_part, score_K[1:].tolist(), strict=False)
        }
        for score, in_part, score_K in zip(
            score_of, places, (scores.perception_K, scores.reasoning_K), strict=True
        )
    ]


def _replaced(ids_C: Tensor, place: int, other_C: Tensor) -> Tensor:
    changed_C = ids_C.clone()
    changed_C[place] = other_C[place]
    return changed_C


def _token_lines(
    backbone: Backbone,
    ids_C: Tensor,
    other_C: Tensor,
    weights_CE: Tensor,
    shares: dict[int, float],
    first: int,
) -> list[list[Any]]:
    decode = backbone.tokenizer.decode
    experts = weights_CE.argmax(1).tolist() if weights_CE.shape[1] > 1 else [None] * len(ids_C)
    return [
        [
            decode([int(ids_C[place])]),
            round(shares[place], _DECIMALS) if place in shares else None,
            experts[place],
            decode([int(other_C[place])]) if place in shares else None,
        ]
        for place in range(first, len(ids_C) - 1)
    ]
