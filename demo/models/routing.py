"""A group as the Discriminator tab shows it: scores, advantages and the experts of each token.

Shape letters: G rollouts, K scored completions (teacher first), T tokens of one part, L adapted layers,
E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prism_lite.config import RunConfig
from prism_lite.discriminator.model import Discriminator
from prism_lite.models.backbone import Backbone
from prism_lite.policy.advantages import alignment_advantages
from prism_lite.types import Group

_DECIMALS = 3  # of routing weights


def group_record(
    backbone: Backbone, discriminator: Discriminator, group: Group, config: RunConfig
) -> dict[str, Any]:
    """Return scores, margins, advantages and routing of a group and its teacher, as plain values.

    The teacher's row comes first, then the students' by decreasing advantage. Likelihood
    features count relative to the teacher's, as in training. A malformed completion has no scores and no
    routing.

    Raises:
        ValueError: the prompt has no well-formed teacher completion to compare with.
    """
    sample = group.sample
    completions = [sample.teacher_parts, *group.students]
    with torch.no_grad(), backbone.role("discriminator"):
        scores = discriminator.score(backbone, [(backbone.prompt(sample), completions)])
    score_K2 = torch.stack([scores.perception_K, scores.reasoning_K], 1).float().cpu()
    weights = scores.weights_of_parts()  # perception and reasoning of each completion in turn
    scored = []
    for k, parts in enumerate(completions):
        token_ids = discriminator.part_tokens(backbone, parts).branches
        perception, reasoning = score_K2[k].tolist()
        scored.append(
            {
                "perception": round(perception, 4),
                "reasoning": round(reasoning, 4),
                # how far the teacher is ahead, mean of both; 0 is where the student fools it
                "margin": round(float((score_K2[0] - score_K2[k]).mean()), 4),
                "routing": _routing(backbone, token_ids, weights[2 * k : 2 * k + 2]),
            }
        )
    teacher = {"who": "teacher", "completion": completions[0].render(), "finish_reason": "end"}
    del scored[0]["margin"]
    students, remaining = [], iter(scored[1:])
    for rollout, advantage in zip(
        group.rollouts, _advantages(group, score_K2[1:], config), strict=True
    ):
        row = {"who": "student", "completion": rollout.text, "finish_reason": rollout.finish}
        row |= next(remaining) if rollout.is_well_formed else {}
        students.append(row | {"advantage": round(advantage, 4)})
    return {
        "prompt_id": sample.id,
        "question": sample.question,
        "picture_ids": [picture.id for picture in sample.pictures],
        "gold": sample.answer,
        "routing_mode": config.discriminator.routing,
        "first_layer": discriminator.first_layer,
        "rows": [teacher | scored[0], *sorted(students, key=lambda row: -row["advantage"])],
    }


def _routing(
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
            "weights": [
                [[round(weight, _DECIMALS) for weight in weights_E] for weights_E in weights_TE]
                for weights_TE in weights_LTE.tolist()
            ],
        }
        for name, ids_T, weights_LTE in zip(
            ("perception", "reasoning"), token_ids, weights, strict=True
        )
    }


def _advantages(group: Group, student_K2: Tensor, config: RunConfig) -> list[float]:
    """Return the advantage of each rollout as in alignment, without its running floor of the spread."""
    is_well_formed_G = torch.tensor([rollout.is_well_formed for rollout in group.rollouts])
    score_G2 = torch.zeros(len(group.rollouts), 2)
    score_G2[is_well_formed_G] = student_K2
    return alignment_advantages(
        score_G2[:, 0],
        score_G2[:, 1],
        group_size=len(group.rollouts),
        well_formed_R=is_well_formed_G,
        alpha=config.align.alpha,
        malformed_penalty=config.align.malformed_penalty,
    ).tolist()
