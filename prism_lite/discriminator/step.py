"""The discriminator's side of the game: scores, its loss, and metrics of both sides.

Shape letters: P prompts, G students of one prompt, K students of several prompts; 2 channels (perception,
reasoning).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

import torch
from torch import Tensor

from prism_lite.config import DiscriminatorConfig
from prism_lite.discriminator.losses import bradley_terry_loss, rank_spread_penalty
from prism_lite.discriminator.model import Discriminator, Scores
from prism_lite.discriminator.part_tokens import cut_metrics
from prism_lite.models.backbone import Backbone
from prism_lite.models.optim import Optimizer, optimizer_step
from prism_lite.models.packing import greedy_batches
from prism_lite.models.prompts import Prompt
from prism_lite.parts import Parts, num_bullets, num_steps


@dataclass(frozen=True)
class JudgedPrompt:
    """One prompt with the teacher's parts and those of its well-formed students."""

    prompt: Prompt
    teacher: Parts
    students: tuple[Parts, ...]


@dataclass(frozen=True, eq=False)
class GameScores:
    """Detached scores of both channels, and the step's metrics.

    Attributes:
        teacher_P2: float32 [P, 2].
        students: per prompt, float32 [G, 2].
        teacher_lengths, student_lengths: tokens of each part, before the cut.
    """

    teacher_P2: Tensor
    students: tuple[Tensor, ...]
    metrics: dict[str, float]
    teacher_lengths: tuple[int, ...] = ()
    student_lengths: tuple[int, ...] = ()

    @staticmethod
    def empty() -> GameScores:
        """Return the scores of a step without a judged prompt."""
        return GameScores(torch.zeros(0, 2), (), {})


def discriminator_step(
    backbone: Backbone,
    discriminator: Discriminator,
    optimizer: Optimizer | None,
    judged: Sequence[JudgedPrompt],
    config: DiscriminatorConfig,
    *,
    learning_rate: float,
    max_grad_norm: float,
    replayed: Sequence[JudgedPrompt] = (),
) -> GameScores:
    """Score teachers and students, and take one optimizer step on the discriminator's loss.

    One forward gives the policy's reward (detached) and the loss: Bradley-Terry of the teacher against
    each student of the same prompt, both channels, plus the penalty on the mean square of the scores,
    the load-balance loss and, if set, GRGC's penalty. METHOD sections 2 and 6.

    Args:
        optimizer: None: the scores alone, nothing is learned.
        judged: prompts with at least one well-formed student each.
        replayed: earlier students, in the loss only: they have no scores or metrics.

    Returns:
        The scores before the step, and the metrics of the convergence panel. Without a judged prompt
        there is nothing to learn from: no scores, no metrics, no step.
    """
    if not judged:
        return GameScores.empty()
    num_judged = _num_pairs(judged)
    num_pairs = num_judged + _num_pairs(replayed)
    max_pack_tokens = backbone.config.max_pack_tokens
    # GRGC needs all scores of a group at once: groups are then not split.
    max_group_tokens = 2**62 if config.grgc_weight > 0 else max_pack_tokens

    def size(parts: Parts) -> int:
        return discriminator.part_tokens(backbone, parts).num_tokens

    def batches(pieces: Iterable[JudgedPrompt]) -> list[list[JudgedPrompt]]:
        return greedy_batches(
            pieces,
            lambda piece: len(piece.prompt) + sum(map(size, (piece.teacher, *piece.students))),
            max_pack_tokens,
        )

    pieces = [_split_group(item, max_group_tokens, size) for item in judged]
    replayed_pieces = chain(*(_split_group(item, max_group_tokens, size) for item in replayed))
    batches_to_run = [(batch, True) for batch in batches(chain(*pieces))]
    batches_to_run += [(batch, False) for batch in batches(replayed_pieces)]
    teachers, students = [], []
    metrics: dict[str, float] = {}
    with backbone.role("discriminator"), torch.set_grad_enabled(optimizer is not None):
        for batch, is_judged in batches_to_run:
            scores = discriminator.score(
                backbone, [(item.prompt, (item.teacher, *item.students)) for item in batch]
            )
            teacher_P2, student_scores = _by_prompt(scores, batch)
            loss, batch_metrics = _loss(scores, teacher_P2, student_scores, config)
            if optimizer is not None:
                optimizer.backward(_num_pairs(batch) / num_pairs * loss)
            if not is_judged:
                continue
            teachers.append(teacher_P2.detach())
            students += [student_G2.detach() for student_G2 in student_scores]
            share = _num_pairs(batch) / num_judged
            for name, value in batch_metrics.items():
                metrics[name] = metrics.get(name, 0.0) + share * value
    if optimizer is not None:
        stepped = optimizer_step(
            optimizer, list(discriminator.parameters()), learning_rate, max_grad_norm
        )
        metrics |= {f"disc/{name}": value for name, value in stepped.items()}
    sides = [item.teacher for item in judged], [s for item in judged for s in item.students]
    teacher_lengths, student_lengths = (discriminator.part_lengths(backbone, s) for s in sides)
    metrics |= _form_metrics(*sides)
    metrics |= cut_metrics(teacher_lengths, student_lengths, config.max_part_tokens)
    # A prompt's pieces are neighbours. Each has a row of the teacher, of which the first counts, and
    # one entry in `students`.
    stops = list(accumulate(map(len, pieces), initial=0))
    return GameScores(
        torch.cat(teachers)[stops[:-1]],
        tuple(torch.cat(students[start:stop]) for start, stop in pairwise(stops)),
        metrics,
        teacher_lengths,
        student_lengths,
    )


def _split_group(
    item: JudgedPrompt, max_group_tokens: int, size: Callable[[Parts], int]
) -> list[JudgedPrompt]:
    """Split a group too large for one forward with its graph; each piece has the teacher.

    Bradley-Terry is a mean over pairs, so the pieces' losses add up to the group's.
    """
    room = max_group_tokens - len(item.prompt) - size(item.teacher)
    return [
        JudgedPrompt(item.prompt, item.teacher, tuple(students))
        for students in greedy_batches(item.students, size, room)
    ]


def _num_pairs(judged: Sequence[JudgedPrompt]) -> int:
    return sum(len(item.students) for item in judged)


def _by_prompt(scores: Scores, batch: Sequence[JudgedPrompt]) -> tuple[Tensor, list[Tensor]]:
    """Return the teachers' scores [P, 2] and, per prompt, the students' [G, 2].

    Raises:
        RuntimeError: a score is not finite; nothing was changed.
    """
    score_K2 = torch.stack([scores.perception_K, scores.reasoning_K], 1)
    if not score_K2.isfinite().all():
        raise RuntimeError(
            f"the discriminator's scores of {', '.join(item.prompt.id for item in batch)} are not "
            "finite: it diverged, or numbers exceed float16. Lower its learning rate "
            "(discriminator.optim.learning_rate), or try model.compute_dtype=float32."
        )
    groups = score_K2.split([1 + len(item.students) for item in batch])
    return torch.stack([group[0] for group in groups]), [group[1:] for group in groups]


def _loss(
    scores: Scores, teacher_P2: Tensor, students: Sequence[Tensor], config: DiscriminatorConfig
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
    for expert, load in enumerate(scores.load_E.tolist()):
        metrics[f"disc/expert_load_{expert}"] = load
    return loss, metrics


def _mean_rank_penalty(students: Sequence[Tensor]) -> Tensor | None:
    """Average GRGC's penalty of both channels over the groups of several students, by their size."""
    groups = [student_G2 for student_G2 in students if len(student_G2) > 1]
    if not groups:
        return None
    penalties = [
        len(student_G2) * rank_spread_penalty(student_G2[:, channel])
        for student_G2 in groups
        for channel in (0, 1)
    ]
    return torch.stack(penalties).sum() / sum(map(len, groups))


def _form_metrics(teachers: Sequence[Parts], students: Sequence[Parts]) -> dict[str, float]:
    """Compute mean characters, bullets and steps of both sides: does their form become alike?"""
    metrics = {}
    for name, side in (("teacher", teachers), ("student", students)):
        counts = {
            "length": [len(parts.render()) for parts in side],
            "bullets": [num_bullets(parts.caption) for parts in side],
            "steps": [num_steps(parts.think) for parts in side],
        }
        metrics |= {f"form/{name}_{what}": sum(n) / len(n) for what, n in counts.items()}
    return metrics
