"""The discriminator's turn, shared by alignment and by RLVR with the game kept on.

Shape letters: R rollouts of all groups, G of one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_lite.discriminator.model import Discriminator
from prism_lite.discriminator.probes import area_under_roc, grounding_probe, heldout_pairs
from prism_lite.discriminator.step import CHANNELS, GameScores, JudgedPrompt, discriminator_step
from prism_lite.models.optim import Optimizer
from prism_lite.parts import Parts
from prism_lite.sampling.many_prompts import rows_without_training
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.stages.alarms.alarm import Alarm
from prism_lite.stages.alarms.discriminator import losing_discriminator
from prism_lite.stages.context import Context
from prism_lite.stages.evaluate import spaced
from prism_lite.types import Group

_MEMORY = 0.9  # share of its old value that a running spread keeps at each step


@dataclass(frozen=True, eq=False)
class JudgedRollouts:
    """What the discriminator says about the rollouts of a step.

    Attributes:
        perception_R, reasoning_R: scores, 0 where malformed (not used).
        well_formed_R: bool.
        game: the scores by prompt and the step's metrics.
    """

    perception_R: Tensor
    reasoning_R: Tensor
    well_formed_R: Tensor
    game: GameScores

    @property
    def scores(self) -> dict[str, Tensor]:
        """The scores by the names of rollout records."""
        return {"perception_score": self.perception_R, "reasoning_score": self.reasoning_R}


class RunningSpread:
    """The usual deviation of the scores within a group, per channel; in the checkpoints.

    Divided by its own small deviation, a group that differs in wording only would get advantages as large
    as one in which a rollout is wrong (METHOD section 8): `factor` times the usual deviation is the floor
    of what is divided by.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._deviations: list[float] = []

    def floors(self, judged: JudgedRollouts, *, group_size: int) -> tuple[float, float]:
        """Include a step's scores; return the floors of perception and reasoning, 0 before any."""
        score_R2 = torch.stack([judged.perception_R, judged.reasoning_R], 1)
        counted_PG = judged.well_formed_R.view(-1, group_size)
        deviations = [
            score_G2[counted_G].std(0, correction=0)
            for score_G2, counted_G in zip(
                score_R2.view(-1, group_size, 2), counted_PG, strict=True
            )
            if counted_G.sum() > 1
        ]
        if deviations:
            new = torch.stack(deviations).mean(0).tolist()
            old = self._deviations or new
            self._deviations = [
                _MEMORY * o + (1 - _MEMORY) * n for o, n in zip(old, new, strict=True)
            ]
        perception, reasoning = self._deviations or (0.0, 0.0)
        return self._factor * perception, self._factor * reasoning

    def state(self) -> list[float]:
        """Return JSON-able content."""
        return self._deviations

    def load(self, state: Sequence[float]) -> None:
        """Restore what `state` returned."""
        self._deviations = list(state)


def judge_rollouts(
    context: Context,
    discriminator: Discriminator,
    optimizer: Optimizer,
    groups: Sequence[Group],
    *,
    learning_rate: float,
    replayed: Sequence[JudgedPrompt] = (),
) -> JudgedRollouts:
    """Score the rollouts, and train the discriminator on them where it learns.

    `discriminator.scores`: a frozen one only scores; the oracle's scores are the task's verdicts.
    """
    config = context.config.discriminator
    judged = judged_prompts(context, groups)
    well_formed_R = torch.tensor([r.is_well_formed for group in groups for r in group.rollouts])
    score_R2 = torch.zeros(len(well_formed_R), 2)
    if config.scores == "oracle":
        score_R2 = _verdicts(context, groups)
        return JudgedRollouts(score_R2[:, 0], score_R2[:, 1], well_formed_R, GameScores.empty())
    game = discriminator_step(
        context.backbone,
        discriminator,
        optimizer if config.scores == "learned" else None,
        judged,
        config,
        learning_rate=learning_rate,
        max_grad_norm=config.optim.max_grad_norm,
        replayed=replayed,
    )
    if game.students:
        score_R2[well_formed_R] = torch.cat(game.students).float().cpu()
    if context.task.verify is not None:
        verdict_R2 = _verdicts(context, groups).bool()
        for channel, name in enumerate(CHANNELS):
            auc = auc_within_groups(
                score_R2[:, channel], verdict_R2[:, channel], well_formed_R, len(groups)
            )
            if auc is not None:
                game.metrics[f"disc/auc_{name}"] = auc
    return JudgedRollouts(score_R2[:, 0], score_R2[:, 1], well_formed_R, game)


def auc_within_groups(
    score_R: Tensor, is_right_R: Tensor, counted_R: Tensor, num_groups: int
) -> float | None:
    """Return the mean over groups of the probability that a right part outscores a wrong one.

    Args:
        score_R: float32 [R], rows of one group adjacent.
        is_right_R, counted_R: bool [R]: the verifier's verdict; which rollouts take part.

    Returns:
        None where no group has both right and wrong parts.
    """
    rows = (value.view(num_groups, -1) for value in (score_R, is_right_R, counted_R))
    aucs = [
        area_under_roc(score_G[counted_G], is_right_G[counted_G])
        for score_G, is_right_G, counted_G in zip(*rows, strict=True)
        if (is_right_G & counted_G).any() and (~is_right_G & counted_G).any()
    ]
    return sum(aucs) / len(aucs) if aucs else None


def judged_prompts(context: Context, groups: Sequence[Group]) -> list[JudgedPrompt]:
    """Return teacher and well-formed students of each prompt that has such students."""
    return [
        JudgedPrompt(
            context.backbone.prompt(group.sample), group.sample.teacher_parts, group.students
        )
        for group in groups
        if group.students
    ]


def panel_if_due(
    context: Context, discriminator: Discriminator, stage: str, step: int, num_steps: int
) -> tuple[dict[str, float], Alarm | None]:
    """Return the panel of every `align.panel_every` steps and of the last one, and its alarm."""
    if step % context.config.align.panel_every and step + 1 < num_steps:
        return {}, None
    figures = _panel(context, discriminator, stage, step)
    return figures, _lost_panels(context, stage, figures)


def _panel(
    context: Context, discriminator: Discriminator, stage: str, step: int
) -> dict[str, float]:
    """Compute the convergence panel: held-out pair accuracy and the grounding probe, per channel."""
    config = context.config
    probe = spaced(context.task.probe, config.align.panel_pairs)
    max_rows = rows_without_training(context.backbone, 1, config.sampling)
    groups = sample_groups(
        context.backbone,
        [pair.sample for pair in probe],
        group_size=1,
        sampling=dataclasses.replace(config.sampling, max_rows=max_rows),
        seed=(config.seed, stage, step, "panel"),
    )
    heldout = judged_prompts(context, groups)
    figures = grounding_probe(context.backbone, discriminator, probe)
    if heldout:
        figures |= heldout_pairs(context.backbone, discriminator, heldout).metrics()
    return figures


def _lost_panels(context: Context, stage: str, figures: dict[str, float]) -> Alarm | None:
    """Check held-out pair accuracy in the panels of a stage so far and in this one.

    A panel without it on both channels is left out.
    """
    names = [f"disc/heldout_pair_accuracy_{channel}" for channel in CHANNELS]
    panels = [p for p in (*context.run.metrics(stage), figures) if all(n in p for n in names)]
    return losing_discriminator([(p[names[0]], p[names[1]]) for p in panels])


def _verdicts(context: Context, groups: Sequence[Group]) -> Tensor:
    """Return whether caption and think of each rollout are right, float32 [R, 2]."""
    verify = context.task.verify
    assert verify is not None, (
        "config and task were checked: only a task that verifies has an oracle"
    )
    verdicts = [
        verify(group.sample, rollout.parts) if isinstance(rollout.parts, Parts) else None
        for group in groups
        for rollout in group.rollouts
    ]
    return torch.tensor([[v.caption, v.think] if v else [False, False] for v in verdicts]).float()
