"""A group as the Discriminator tab shows it: scores, advantages and the experts of each token.

Shape letters: G candidates, T tokens of one part, L adapted layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prism_lite.config import RunConfig
from prism_lite.discriminator.model import Discriminator
from prism_lite.models.backbone import Backbone
from prism_lite.parts import Parts, parse
from prism_lite.policy.advantages import alignment_advantages
from prism_lite.types import Group

DECIMALS = 3


def group_record(
    backbone: Backbone,
    discriminator: Discriminator,
    group: Group,
    config: RunConfig,
) -> dict[str, Any]:
    """Scores, margins, advantages and routing of a group and its teacher, as plain values.

    Rows come with the teacher first, then by falling advantage. A malformed candidate has no scores.

    Raises:
        ValueError: the prompt has no well-formed teacher completion to compare with.
    """
    sample = group.sample
    teacher = parse(sample.teacher or "")
    if not isinstance(teacher, Parts):
        raise ValueError(f"{sample.id} has no teacher completion: choose another prompt.")
    prompt = backbone.prompt(sample)
    judged = [
        (i, rollout.parts)
        for i, rollout in enumerate(group.rollouts)
        if rollout.is_well_formed and isinstance(rollout.parts, Parts)
    ]
    with torch.no_grad(), backbone.role("discriminator"):
        completions = [teacher, *(parts for _, parts in judged)]
        scores = discriminator.score(backbone, [(prompt, completions)])
    weights = scores.weights_of_parts()
    routings = [
        _part_routing(
            backbone,
            discriminator.part_tokens(backbone, parts).branches,
            weights[2 * number : 2 * number + 2],  # perception and reasoning by turns
        )
        for number, parts in enumerate(completions)
    ]
    pairs = torch.stack([scores.perception_K, scores.reasoning_K], 1).float().cpu()
    advantage_G = _advantages(pairs[1:], [i for i, _ in judged], len(group.rollouts), config)
    rows = [_row("teacher", teacher.render(), "end", pairs[0], None, None, routings[0])]
    place = {i: k for k, (i, _) in enumerate(judged, 1)}
    for i, rollout in enumerate(group.rollouts):
        k = place.get(i)
        score_2, routing = (pairs[k], routings[k]) if k is not None else (None, None)
        advantage = float(advantage_G[i])
        rows.append(
            _row("student", rollout.text, rollout.finish, score_2, pairs[0], advantage, routing)
        )
    rows[1:] = sorted(rows[1:], key=lambda row: -row["advantage"])
    return {
        "prompt_id": sample.id,
        "question": sample.question,
        "picture_ids": [picture.id for picture in sample.pictures],
        "gold": sample.answer,
        "routing_mode": config.discriminator.routing,
        "first_layer": discriminator.first_layer,
        "rows": rows,
    }


def _part_routing(
    backbone: Backbone, token_ids: Sequence[Tensor], weights: Sequence[Tensor]
) -> dict[str, Any]:
    """Return the routing weights of both parts of one completion, as plain values.

    Args:
        token_ids: int64 [T] of the perception and of the reasoning part.
        weights: float32 [L, T, E] of each.

    Returns:
        {"perception": {"tokens": [T texts], "weights": [L][T][E]}, "reasoning": the same}
    """
    return {
        name: {
            "tokens": [backbone.tokenizer.decode([token]) for token in ids_T.tolist()],
            "weights": [_rounded(weights_TE) for weights_TE in weights_LTE.cpu()],
        }
        for name, ids_T, weights_LTE in zip(
            ("perception", "reasoning"), token_ids, weights, strict=True
        )
    }


def _advantages(
    student_K2: Tensor, places: list[int], group_size: int, config: RunConfig
) -> Tensor:
    """advantage_G as in the alignment stage."""
    score_G2 = torch.zeros(group_size, 2)
    is_well_formed_G = torch.zeros(group_size, dtype=torch.bool)
    if places:
        score_G2[places] = student_K2
        is_well_formed_G[places] = True
    return alignment_advantages(
        score_G2[:, 0],
        score_G2[:, 1],
        group_size=group_size,
        well_formed_R=is_well_formed_G,
        alpha=config.align.alpha,
        malformed_penalty=config.align.malformed_penalty,
    )


def _row(
    who: str,
    completion: str,
    finish_reason: str,
    score_2: Tensor | None,
    teacher_2: Tensor | None,
    advantage: float | None,
    routing: dict[str, Any] | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"who": who, "completion": completion, "finish_reason": finish_reason}
    if score_2 is not None:
        row |= {"perception": round(float(score_2[0]), 4), "reasoning": round(float(score_2[1]), 4)}
        if teacher_2 is not None:
            # how far the teacher is ahead, both channels; 0 is where the student fools it
            margin = float((teacher_2 - score_2).mean())
            row["margin"] = round(margin, 4)
    if advantage is not None:
        row["advantage"] = round(advantage, 4)
    if routing is not None:
        row["routing"] = routing
    return row


def _rounded(weights_TE: Tensor) -> list[list[float]]:
    return [[round(value, DECIMALS) for value in row] for row in weights_TE.tolist()]
