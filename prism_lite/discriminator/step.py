"""The discriminator's side of the game: scores, its loss, and metrics of both sides.

A tie is a student's part with the text of the teacher's, as the discriminator reads it: no order is to be
learned from it, and it is not counted in pair accuracy.

Shape letters: P prompts, G students of one prompt, K students of several prompts; 2 channels (perception,
reasoning).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from prism_lite.config import DiscriminatorConfig
from prism_lite.discriminator.losses import bradley_terry_loss, rank_spread_penalty
from prism_lite.discriminator.model import Discriminator, Scores
from prism_lite.discriminator.part_tokens import cut_metrics, part_texts
from prism_lite.models.backbone import Backbone
from prism_lite.models.device import release_unused
from prism_lite.models.optim import Optimizer, optimizer_step
from prism_lite.models.packing import greedy_batches
from prism_lite.models.prompts import Prompt
from prism_lite.parts import Parts, num_bullets, num_steps
from prism_lite.processes import share_work
from prism_lite.types import NotFiniteError

CHANNELS = ("perception", "reasoning")


@dataclass(frozen=True)
class JudgedPrompt:
    """One prompt with the teacher's parts and those of its well-formed students."""

    prompt: Prompt
    teacher: Parts
    students: tuple[Parts, ...]

    def ties(self, config: DiscriminatorConfig) -> list[tuple[bool, bool]]:
        """Return for each student whether its perception and its reasoning part are ties."""
        perception, reasoning = part_texts(config, self.teacher)
        texts = (part_texts(config, student) for student in self.students)
        return [(own == perception, also == reasoning) for own, also in texts]


@dataclass(frozen=True, eq=False)
class GameScores:
    """Detached scores of both channels, and the step's metrics.

    Attributes:
        teacher_P2: float32 [P, 2].
        students: per prompt, float32 [G, 2].
        teacher_lengths, student_lengths: tokens of each part, before the cut.
        ties: per prompt, bool [G, 2]: the texts are the teacher's.
    """

    teacher_P2: Tensor
    students: tuple[Tensor, ...]
    metrics: dict[str, float]
    teacher_lengths: tuple[int, ...] = ()
    student_lengths: tuple[int, ...] = ()
    ties: tuple[Tensor, ...] = ()

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

    Several processes share the forwards: they are laid out as in one, since the load-balance loss is a mean
    over those of a forward.

    One forward gives the policy's reward (detached) and the loss: Bradley-Terry of the teacher against
    each student of the same prompt, both channels without ties, plus the penalty on the mean square of
    the scores, the load-balance loss and, if set, GRGC's penalty. METHOD sections 2 and 6.

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
    release_unused(backbone.device)
    num_judged, num_all = _num_pairs(judged, config), _num_pairs([*judged, *replayed], config)
    max_pack_tokens = backbone.config.max_pack_tokens
    # GRGC needs all scores of a group at once: groups are then not split.
    max_group_tokens = 2**62 if config.grgc_weight > 0 else max_pack_tokens

    def size(parts: Parts) -> int:
        return discriminator.part_tokens(backbone, parts).num_tokens

    pieces = [_split_group(item, max_group_tokens, size) for item in judged]
    replayed_pieces = chain(*(_split_group(item, max_group_tokens, size) for item in replayed))
    batches_to_run = [(b, True) for b in _batches(chain(*pieces), max_pack_tokens, size)]
    batches_to_run += [(b, False) for b in _batches(replayed_pieces, max_pack_tokens, size)]

    def run(shared: Sequence[tuple[list[JudgedPrompt], bool]]) -> list[_BatchScores]:
        """Forward and propagate batches; return what the judged ones contribute."""
        results = []
        for batch, is_judged in shared:
            scores = discriminator.score(
                backbone, [(item.prompt, (item.teacher, *item.students)) for item in batch]
            )
            teacher_P2, student_scores = _by_prompt(scores, batch)
            losses = _losses(scores, teacher_P2, student_scores, batch, config)
            num_batch = _num_pairs(batch, config)
            if optimizer is not None:
                optimizer.backward(_weighted(losses, num_batch, num_all))
            if not is_judged:
                continue
            share = num_batch.total / num_judged.total
            metrics = {k: share * value for k, value in _expert_metrics(scores, losses).items()}
            metrics["disc/loss"] = float(_weighted(losses, num_batch, num_judged).detach())
            students = [student_G2.detach().cpu() for student_G2 in student_scores]
            results.append(_BatchScores(teacher_P2.detach().cpu(), students, metrics))
        return results

    with backbone.role("discriminator"), torch.set_grad_enabled(optimizer is not None):
        results = share_work(batches_to_run, run)
    metrics: dict[str, float] = {}
    for name, value in (entry for result in results for entry in result.metrics.items()):
        metrics[name] = metrics.get(name, 0.0) + value
    students = [student_G2 for result in results for student_G2 in result.students]
    if optimizer is not None:
        stepped = optimizer_step(
            optimizer, list(discriminator.parameters()), learning_rate, max_grad_norm
        )
        metrics |= {f"disc/{name}": value for name, value in stepped.items()}
    sides = [item.teacher for item in judged], [s for item in judged for s in item.students]
    teacher_lengths, student_lengths = (discriminator.part_lengths(backbone, s) for s in sides)
    # A prompt's pieces are neighbours. Each has a row of the teacher, of which the first counts, and
    # one entry in `students`.
    stops = list(accumulate(map(len, pieces), initial=0))
    teacher_P2 = torch.cat([result.teacher_P2 for result in results])[stops[:-1]]
    students = tuple(torch.cat(students[start:stop]) for start, stop in pairwise(stops))
    ties = tuple(torch.tensor(item.ties(config)) for item in judged)
    metrics |= _pair_metrics(teacher_P2, students, ties, num_judged)
    metrics |= _form_metrics(*sides)
    metrics |= cut_metrics(teacher_lengths, student_lengths, config.max_part_tokens)
    return GameScores(teacher_P2, students, metrics, teacher_lengths, student_lengths, ties)


class _BatchScores(NamedTuple):
    """Detached scores of a batch of judged prompts, and its share of the metrics."""

    teacher_P2: Tensor
    students: list[Tensor]
    metrics: dict[str, float]


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


def _batches(
    pieces: Iterable[JudgedPrompt], max_pack_tokens: int, size: Callable[[Parts], int]
) -> list[list[JudgedPrompt]]:
    """Return the pieces in batches of one forward each."""
    return greedy_batches(
        pieces,
        lambda piece: len(piece.prompt) + sum(map(size, (piece.teacher, *piece.students))),
        max_pack_tokens,
    )


class _NumPairs(NamedTuple):
    """Number of pairs, and per channel of those that are not ties."""

    total: int
    perception: int
    reasoning: int


def _num_pairs(judged: Sequence[JudgedPrompt], config: DiscriminatorConfig) -> _NumPairs:
    ties = [tie for item in judged for tie in item.ties(config)]
    return _NumPairs(len(ties), *(sum(not tie[channel] for tie in ties) for channel in (0, 1)))


def _by_prompt(scores: Scores, batch: Sequence[JudgedPrompt]) -> tuple[Tensor, list[Tensor]]:
    """Return the teachers' scores [P, 2] and, per prompt, the students' [G, 2].

    Raises:
        NotFiniteError: a score is not finite; nothing was changed.
    """
    score_K2 = torch.stack([scores.perception_K, scores.reasoning_K], 1)
    if not score_K2.isfinite().all():
        raise NotFiniteError(
            f"the discriminator's scores of {', '.join(item.prompt.id for item in batch)} are not "
            "finite: it diverged, or numbers exceed float16 (model.compute_dtype=float32)"
        )
    groups = score_K2.split([1 + len(item.students) for item in batch])
    return torch.stack([group[0] for group in groups]), [group[1:] for group in groups]


class _Losses(NamedTuple):
    """The loss of a batch: Bradley-Terry of each channel, the other terms, and GRGC's penalty of these."""

    perception: Tensor
    reasoning: Tensor
    others: Tensor
    grgc: Tensor | None


def _losses(
    scores: Scores,
    teacher_P2: Tensor,
    students: Sequence[Tensor],
    batch: Sequence[JudgedPrompt],
    config: DiscriminatorConfig,
) -> _Losses:
    student_K2 = torch.cat(list(students))
    counts = torch.tensor([len(student) for student in students], device=teacher_P2.device)
    opposite_K2 = teacher_P2.repeat_interleave(counts, 0)
    ties = [tie for item in batch for tie in item.ties(config)]
    is_tie_K2 = torch.tensor(ties, device=teacher_P2.device)
    perception, reasoning = (
        bradley_terry_loss(opposite_K2[:, channel], student_K2[:, channel], is_tie_K2[:, channel])
        for channel in (0, 1)
    )
    all_scores = torch.cat([teacher_P2, student_K2])
    others = (
        config.score_penalty * all_scores.square().mean()
        + config.balance_weight * scores.balance_loss
    )
    grgc = _mean_rank_penalty(students) if config.grgc_weight > 0 else None
    if grgc is not None:
        others = others + config.grgc_weight * grgc
    return _Losses(perception, reasoning, others, grgc)


def _weighted(losses: _Losses, num_batch: _NumPairs, num_all: _NumPairs) -> Tensor:
    """Weigh a batch's losses by its share of all pairs, so that those of all batches add up."""
    return (
        losses.perception * (num_batch.perception / max(1, num_all.perception))
        + losses.reasoning * (num_batch.reasoning / max(1, num_all.reasoning))
        + losses.others * (num_batch.total / num_all.total)
    )


def _expert_metrics(scores: Scores, losses: _Losses) -> dict[str, float]:
    """Return what is known of a forward only: routing, and GRGC's penalty."""
    return {
        **({} if losses.grgc is None else {"disc/grgc": float(losses.grgc.detach())}),
        "disc/balance_loss": float(scores.balance_loss.detach()),
        "disc/router_entropy": float(scores.router_entropy),
        **{f"disc/expert_load_{k}": load for k, load in enumerate(scores.load_E.tolist())},
    }


def _pair_metrics(
    teacher_P2: Tensor, students: Sequence[Tensor], ties: Sequence[Tensor], num_pairs: _NumPairs
) -> dict[str, float]:
    """Compute pair accuracy without ties, their share, and mean margins and scores of all pairs."""
    student_K2, is_tie_K2 = torch.cat(list(students)), torch.cat(list(ties)).to(teacher_P2.device)
    counts = torch.tensor([len(student) for student in students], device=teacher_P2.device)
    margin_K2 = teacher_P2.repeat_interleave(counts, 0) - student_K2
    metrics = {}
    for channel, name in enumerate(CHANNELS):
        margin_K, num_counted = margin_K2[:, channel], num_pairs[1 + channel]
        if num_counted:
            num_won = float(((margin_K > 0) & ~is_tie_K2[:, channel]).sum())
            metrics[f"disc/pair_accuracy_{name}"] = num_won / num_counted
        metrics |= {
            f"disc/ties_{name}": 1 - num_counted / num_pairs.total,
            f"disc/margin_{name}": float(margin_K.mean()),
            f"disc/score_teacher_{name}": float(teacher_P2[:, channel].mean()),
            f"disc/score_student_{name}": float(student_K2[:, channel].mean()),
        }
    return metrics


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
