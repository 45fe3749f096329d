"""The discriminator's side of the game: scores, its loss, and what is logged of both.

Shape letters: P prompts, G rollouts per prompt, R = P * G rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from prism_lite.config import DiscriminatorConfig
from prism_lite.discriminator.losses import bradley_terry_loss, rank_spread_penalty
from prism_lite.discriminator.metrics import cut_metrics, form_metrics
from prism_lite.discriminator.model import Discriminator, Scores
from prism_lite.models.backbone import Backbone
from prism_lite.models.optim import Optimizer, optimizer_step
from prism_lite.models.packing import greedy_batches
from prism_lite.models.prompts import Prompt
from prism_lite.parts import Parts


@dataclass(frozen=True)
class Judged:
    """One prompt: the teacher's parts and the well-formed students'."""

    prompt: Prompt
    teacher: Parts
    students: tuple[Parts, ...]


@dataclass(frozen=True, eq=False)
class GameScores:
    """Detached scores of both channels (perception, reasoning), and the step's metrics.

    Attributes:
        teacher_P2: float32 [P, 2].
        students: per prompt, float32 [students, 2].
        teacher_lengths, student_lengths: tokens of each part, uncut.
    """

    teacher_P2: Tensor
    students: tuple[Tensor, ...]
    metrics: dict[str, float]
    teacher_lengths: tuple[int, ...] = ()
    student_lengths: tuple[int, ...] = ()


def discriminator_step(
    backbone: Backbone,
    discriminator: Discriminator,
    optimizer: Optimizer,
    judged: Sequence[Judged],
    config: DiscriminatorConfig,
    *,
    learning_rate: float,
    max_grad_norm: float,
    replayed: Sequence[Judged] = (),
) -> GameScores:
    """One forward gives the policy's reward (detached) and the discriminator's loss (attached).

    Loss: Bradley-Terry of teacher against each student of the same prompt, both channels, plus the
    penalty on the mean square of the scores, the load-balance loss and, where it is on, GRGC's
    penalty. METHOD sections 2 and 6.

    Args:
        judged: prompts with at least one well-formed student each.
        replayed: earlier students, in the loss only: no score or metric is of them.

    Returns:
        The scores before the step, and the metrics of the convergence panel. Without a judged prompt
        there is nothing to learn from: no scores, no metrics, no step.
    """
    if not judged:
        return GameScores(torch.zeros(0, 2), (), {})
    num_judged = _num_pairs(judged)
    num_pairs = num_judged + _num_pairs(replayed)
    max_pack_tokens = backbone.config.max_pack_tokens
    room = 2**62 if config.grgc_weight > 0 else max_pack_tokens  # GRGC looks at a whole group

    def size(parts: Parts) -> int:
        return discriminator.part_tokens(backbone, parts).num_tokens

    def packs(pieces: Iterable[Judged]) -> list[list[Judged]]:
        return greedy_batches(
            pieces,
            lambda piece: len(piece.prompt) + sum(map(size, (piece.teacher, *piece.students))),
            max_pack_tokens,
        )

    pieces = [_split_group(item, room, size) for item in judged]
    earlier = chain(*(_split_group(item, room, size) for item in replayed))
    chunks = [(chunk, True) for chunk in packs(chain(*pieces))]
    chunks += [(chunk, False) for chunk in packs(earlier)]
    teachers, students = [], []
    totals: dict[str, float] = {}
    with backbone.role("discriminator"):
        for chunk, is_judged in chunks:
            scores = discriminator.score(
                backbone, [(item.prompt, (item.teacher, *item.students)) for item in chunk]
            )
            teacher_P2, student_scores = _by_prompt(scores, chunk)
            loss, metrics = _loss(scores, teacher_P2, student_scores, config)
            optimizer.backward(_num_pairs(chunk) / num_pairs * loss)
            if not is_judged:
                continue
            teachers.append(teacher_P2.detach())
            students += [student.detach() for student in student_scores]
            for name, value in metrics.items():
                share = _num_pairs(chunk) / num_judged
                totals[name] = totals.get(name, 0.0) + share * value
    stepped = optimizer_step(
        optimizer, list(discriminator.parameters()), learning_rate, max_grad_norm
    )
    sides = [item.teacher for item in judged], [s for item in judged for s in item.students]
    teacher_lengths, student_lengths = (discriminator.part_lengths(backbone, s) for s in sides)
    totals |= form_metrics(*sides)
    totals |= cut_metrics(teacher_lengths, student_lengths, config.max_part_tokens)
    # From the pieces' scores to the prompts': a prompt's pieces are neighbours, each with the teacher.
    num_pieces = torch.tensor([len(piece) for piece in pieces])
    teacher_P2 = torch.cat(teachers)[num_pieces.cumsum(0) - num_pieces]
    stops = num_pieces.cumsum(0).tolist()
    student_scores = tuple(
        torch.cat(students[stop - len(piece) : stop])
        for stop, piece in zip(stops, pieces, strict=True)
    )
    totals |= {f"disc/{name}": value for name, value in stepped.items()}
    return GameScores(teacher_P2, student_scores, totals, teacher_lengths, student_lengths)


def _split_group(item: Judged, max_pack_tokens: int, size: Callable[[Parts], int]) -> list[Judged]:
    """Split a group too large for one forward with its graph; each piece has the teacher.

    Bradley-Terry is a mean over pairs, so the pieces' losses add up to the group's.
    """
    room = max_pack_tokens - len(item.prompt) - size(item.teacher)
    return [
        Judged(item.prompt, item.teacher, tuple(students))
        for students in greedy_batches(item.students, size, room)
    ]


def _num_pairs(judged: Sequence[Judged]) -> int:
    return sum(len(item.students) for item in judged)


def _by_prompt(scores: Scores, chunk: Sequence[Judged]) -> tuple[Tensor, list[Tensor]]:
    """Teacher scores [P, 2] and, per prompt, student scores [students, 2].

    Raises:
        RuntimeError: a score is not finite; nothing was changed.
    """
    score_K2 = torch.stack([scores.perception_K, scores.reasoning_K], 1)
    if not score_K2.isfinite().all():
        raise RuntimeError(
            f"the discriminator's scores of {', '.join(item.prompt.id for item in chunk)} are not "
            "finite: it diverged, or numbers go beyond float16. Lower its learning rate "
            "(discriminator.optim.learning_rate), or try model.compute_dtype=float32."
        )
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
    grgc = _mean_rank_penalty(students) if config.grgc_weight > 0 else None
    if grgc is not None:
        loss = loss + config.grgc_weight * grgc
    margin_K2 = (opposite_K2 - student_K2).detach()
    metrics = {
        "disc/loss": float(loss.detach()),
        **({} if grgc is None else {"disc/grgc": float(grgc.detach())}),
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


def _mean_rank_penalty(students: Sequence[Tensor]) -> Tensor | None:
    """GRGC's penalty, both channels together, a mean over the groups of several by their size."""
    groups = [student_G2 for student_G2 in students if len(student_G2) > 1]
    if not groups:
        return None
    penalties = [
        len(student_G2) * rank_spread_penalty(student_G2[:, channel])
        for student_G2 in groups
        for channel in (0, 1)
    ]
    return torch.stack(penalties).sum() / sum(map(len, groups))
