"""The discriminator's side of the game: scores, its loss, and what is logged of both.

Shape letters: P prompts, G rollouts per prompt, R = P * G rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_lite.config import DiscriminatorConfig
from prism_lite.losses import bradley_terry_loss
from prism_lite.models.backbone import Backbone
from prism_lite.models.discriminator import Discriminator, Scores
from prism_lite.models.prompts import Prompt
from prism_lite.optim import Optimizer, optimizer_step
from prism_lite.parts import Parts


@dataclass(frozen=True)
class Judged:
    """One prompt: the teacher's parts and the well-formed students'."""

    prompt: Prompt
    teacher: Parts
    students: tuple[Parts, ...]


@dataclass(frozen=True, eq=False)
class GameScores:
    """Detached scores, per channel: teacher_PC and students as lists of [num students, 2]."""

    teacher_P2: Tensor
    students: tuple[Tensor, ...]
    metrics: dict[str, float]


def discriminator_step(
    backbone: Backbone,
    discriminator: Discriminator,
    optimizer: Optimizer,
    judged: Sequence[Judged],
    config: DiscriminatorConfig,
    *,
    learning_rate: float,
    max_grad_norm: float,
) -> GameScores:
    """One forward gives the policy's reward (detached) and the discriminator's loss (attached).

    Loss: Bradley-Terry of teacher against each student of the same prompt, both channels, plus the
    penalty on the mean square of the scores and the load-balance loss. METHOD section 2.

    Args:
        judged: prompts with at least one well-formed student each.

    Returns:
        The scores before the step, and the metrics of the convergence panel. Without a judged prompt
        there is nothing to learn from: no scores, no metrics, no step.
    """
    if not judged:
        return GameScores(torch.zeros(0, 2), (), {})
    num_pairs = sum(len(item.students) for item in judged)
    teachers, students = [], []
    totals: dict[str, float] = {}
    with backbone.role("discriminator"):
        for chunk in _chunks(judged, backbone.config.max_pack_tokens):
            scores = discriminator.score(
                backbone, [(item.prompt, (item.teacher, *item.students)) for item in chunk]
            )
            share = sum(len(item.students) for item in chunk) / num_pairs
            teacher_P2, student_scores = _by_prompt(scores, chunk)
            loss, metrics = _loss(scores, teacher_P2, student_scores, config)
            optimizer.backward(share * loss)
            teachers.append(teacher_P2.detach())
            students += [student.detach() for student in student_scores]
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + share * value
    stepped = optimizer_step(
        optimizer, list(discriminator.parameters()), learning_rate, max_grad_norm
    )
    totals |= {f"disc/{name}": value for name, value in stepped.items()}
    return GameScores(torch.cat(teachers), tuple(students), totals)


def _by_prompt(scores: Scores, chunk: Sequence[Judged]) -> tuple[Tensor, list[Tensor]]:
    """Teacher scores [P, 2] and, per prompt, student scores [students, 2]."""
    score_K2 = torch.stack([scores.perception_K, scores.reasoning_K], 1)
    rows = score_K2.split([1 + len(item.students) for item in chunk])
    return torch.stack([row[0] for row in rows]), [row[1:] for row in rows]


def _loss(
    scores: Scores,
    teacher_P2: Tensor,
    students: Sequence[Tensor],
    config: DiscriminatorConfig,
) -> tuple[Tensor, dict[str, float]]:
    student_K2 = torch.cat(list(students))
    counts = torch.tensor([len(student) for student in students], device=teacher_P2.device)
    opposite_K2 = teacher_P2.repeat_interleave(counts, 0)
    bradley_terry = sum(
        bradley_terry_loss(opposite_K2[:, channel], student_K2[:, channel]) for channel in (0, 1)
    )
    all_scores = torch.cat([teacher_P2, student_K2])
    loss = (
        bradley_terry
        + config.score_penalty * all_scores.square().mean()
        + config.balance_weight * scores.balance_loss
    )
    margin_K2 = (opposite_K2 - student_K2).detach()
    metrics = {
        "disc/loss": float(loss.detach()),
        "disc/balance_loss": float(scores.balance_loss.detach()),
        "disc/router_entropy": float(scores.router_entropy),
    }
    for channel, name in enumerate(("perception", "reasoning")):
        margin_K = margin_K2[:, channel]
        metrics |= {
            f"disc/pair_accuracy_{name}": float((margin_K > 0).float().mean()),
            f"disc/margin_{name}": float(margin_K.mean()),
            f"disc/score_teacher_{name}": float(teacher_P2[:, channel].detach().mean()),
            f"disc/score_student_{name}": float(student_K2[:, channel].detach().mean()),
        }
    for expert, share in enumerate(scores.load_E.tolist()):
        metrics[f"disc/expert_load_{expert}"] = share
    return loss, metrics


def _chunks(judged: Sequence[Judged], max_pack_tokens: int) -> list[list[Judged]]:
    """Prompts whose parts fit one forward together, by a rough count of characters per token."""
    chunks: list[list[Judged]] = [[]]
    tokens = 0
    for item in judged:
        texts = (item.teacher, *item.students)
        size = len(item.prompt) + sum(len(parts.render()) for parts in texts) // 2
        if chunks[-1] and tokens + size > max_pack_tokens:
            chunks.append([])
            tokens = 0
        chunks[-1].append(item)
        tokens += size
    return chunks
