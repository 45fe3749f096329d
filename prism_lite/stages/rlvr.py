"""Stage 4, RLVR: verifiable rewards, from the aligned policy (or SFT's). METHOD section 4.

Shape letters: P prompts, G rollouts per prompt, R = P * G rollouts.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Literal

import torch
from torch import Tensor

from prism_lite.config import BUILT_IN_REWARDS, RlvrConfig, RunConfig
from prism_lite.config.checks import discriminator_before_rlvr, game_begins_in_rlvr
from prism_lite.console import say
from prism_lite.discriminator.model import Discriminator
from prism_lite.models.backbone import REFERENCE
from prism_lite.models.optim import learning_rate_at
from prism_lite.policy.advantages import (
    aligned_advantages,
    center_groups,
    fill_unscored,
    group_zscore,
    reward_advantages,
    weighted_sum,
)
from prism_lite.policy.step import rollout_kl, update_policy
from prism_lite.rewards.group_rewards import accuracy_of, undecided_rollouts
from prism_lite.stages.alarms.alarm import Alarm
from prism_lite.stages.alarms.discriminator import game_alarms
from prism_lite.stages.alarms.rewards import (
    undecided_answers,
    unscored_rollouts,
    zero_spread_groups,
)
from prism_lite.stages.alarms.stage import Alarms
from prism_lite.stages.context import Context
from prism_lite.stages.drift import kl_of_step
from prism_lite.stages.game import JudgedRollouts, RunningSpread, judge_rollouts, panel_if_due
from prism_lite.stages.gate import check_gate
from prism_lite.stages.rollout_batch import RolloutBatch, sample_batch
from prism_lite.stages.rollout_log import (
    reward_metrics,
    rollout_metrics,
    rollout_records,
    undecided_metrics,
)
from prism_lite.types import NotFiniteError

# A wider bound is meant for ratios of tokens; ratios of rollouts vary less.
_WIDEST_GSPO_CLIP = 0.01
# Alarms that explain groups without spread: nothing in them can be right.
_NO_ANSWER = ("truncated_completions", "malformed_completions")


def control_config(config: RunConfig) -> RlvrConfig:
    """Return the settings of RLVR alone, with as many rollouts as alignment and RLVR together."""
    align, rlvr = config.align, config.rlvr
    num_rollouts = align.steps * align.prompts_per_step * align.group_size
    extra = math.ceil(num_rollouts / (rlvr.prompts_per_step * rlvr.group_size))
    return dataclasses.replace(rlvr, start="sft", steps=rlvr.steps + extra, game="off")


def run_control(context: Context) -> None:
    """Train RLVR alone, from SFT's policy: what alignment is compared with."""
    config = dataclasses.replace(context.config, rlvr=control_config(context.config))
    run_rlvr(dataclasses.replace(context, config=config), "control")


def run_rlvr(context: Context, stage: Literal["rlvr", "control"] = "rlvr") -> None:
    """Reinforce correct answers in the right format; with `rlvr.game` against the discriminator."""
    config, backbone, run = context.config.rlvr, context.backbone, context.run
    disc_config = context.config.discriminator
    discriminator = _load_discriminator(context) if config.game != "off" else None
    start = run.load_final(config.start)["policy"]
    backbone.load_adapter_state(start)
    backbone.drop_adapter(REFERENCE)
    if config.kl_weight > 0 and config.kl_reference == "start":
        backbone.freeze_copy(REFERENCE)
    optimizers = {"policy": context.optimizer(config.optim)}
    if discriminator is not None:
        optimizers["discriminator"] = context.optimizer(disc_config.optim, discriminator)
    spread = RunningSpread(context.config.align.spread_floor)
    _print_settings(context)
    alarms, has_run_out = Alarms(run, stage), False
    for step in context.steps(
        stage, config.steps, optimizers, discriminator=discriminator, buffers={"spread": spread}
    ):
        if (
            step == run.first_step
            and discriminator is not None
            and game_begins_in_rlvr(context.config)
        ):
            check_gate(context, discriminator)  # otherwise it was checked before alignment
        # 1. sample and reward groups; with dynamic sampling replace those without spread
        started_s = time.perf_counter()
        batch = sample_batch(context, step)
        generated_s = time.perf_counter() - started_s
        if batch.ran_out and not has_run_out:
            has_run_out = True
            say(run.console, _running_out_message(batch, config, step), "yellow")
        # 2. advantages of the groups that are kept
        reward_R = weighted_sum(batch.rewards, context.reward_weights)
        advantage_R, metrics = _advantages(context, batch)
        scores: dict[str, Tensor] = {}
        checked: list[Alarm | None] = []
        if discriminator is not None:
            judged = judge_rollouts(
                context,
                discriminator,
                optimizers["discriminator"],
                batch.groups,
                learning_rate=learning_rate_at(disc_config.optim, step, config.steps),
            )
            floors = spread.floors(judged, group_size=config.group_size)
            advantage_R = advantage_R + _game_advantages(context, batch, judged, floors)
            scores = judged.scores
            figures, lost = panel_if_due(context, discriminator, stage, step, config.steps)
            metrics |= judged.game.metrics | figures
            checked += [*game_alarms(judged.game, score_cap=disc_config.score_cap), lost]
        # (written before the policy's step: if it fails, its rollouts can be inspected)
        records = rollout_records(batch.groups, advantage_R, scores, batch.rewards)
        run.write_rollouts(stage, step, records)
        # 3. policy-gradient step
        metrics["kl_to_start"] = kl_of_step(
            backbone, start, batch.sampled, temperature=context.config.sampling.temperature
        )
        metrics |= update_policy(
            backbone,
            optimizers["policy"],
            batch.kept,
            advantage_R[batch.is_kept_R],
            sampling=context.config.sampling,
            optim=config.optim,
            learning_rate=learning_rate_at(config.optim, step, config.steps),
            loss=config.loss,
            num_minibatches=config.num_minibatches,
            mask_truncated=config.mask_truncated,
            kl_weight=config.kl_weight if config.kl_in == "loss" else 0.0,
            kl_kind=config.kl_kind,
        )
        metrics = rollout_metrics(batch.sampled, generated_s=generated_s) | metrics | batch.metrics
        metrics |= _reward_metrics(batch, reward_R, config.group_size)
        metrics |= undecided_metrics(batch.groups, batch.rewards)
        checked += [
            *_check_rewards(context, batch, reward_R, alarms.of_rollouts(batch.sampled)),
            undecided_answers(metrics.get("rewards/accuracy/undecided", 0.0)),
        ]
        metrics |= alarms.report(checked, step)
        run.log(stage, step, metrics)
    tensors = {"policy": backbone.adapter_state()}
    if discriminator is not None:
        tensors["discriminator"] = discriminator.state_dict()
    run.save_final(stage, tensors)


def _check_rewards(
    context: Context, batch: RolloutBatch, reward_R: Tensor, of_rollouts: list[Alarm | None]
) -> list[Alarm | None]:
    """Check the rewards of a step; return these alarms after those of its rollouts, which explain them."""
    group_size = context.config.rlvr.group_size
    is_decided_R = ~undecided_rollouts(batch.groups, batch.rewards)
    causes = [alarm.name for alarm in of_rollouts if alarm and alarm.name in _NO_ANSWER]
    return [
        *of_rollouts,
        zero_spread_groups(
            fill_unscored(reward_R, group_size=group_size).tolist(),
            group_size=group_size,
            largest=_largest_reward(context.reward_weights),
            causes=" and ".join(causes),
        ),
        unscored_rollouts(reward_R[is_decided_R].tolist()),
    ]


def _largest_reward(weights: dict[str, float]) -> float | None:
    """Return the reward of a perfect rollout; None where a user's function has an unknown range."""
    if not weights.keys() <= set(BUILT_IN_REWARDS):
        return None
    return sum(max(weight, 0.0) for name, weight in weights.items() if name != "overlong")


def _load_discriminator(context: Context) -> Discriminator:
    """Load the discriminator that the stage before this one trained."""
    return context.load_discriminator(discriminator_before_rlvr(context.config))


def _game_advantages(
    context: Context, batch: RolloutBatch, judged: JudgedRollouts, floors: tuple[float, float]
) -> Tensor:
    """Return the discriminator's share of the advantages [R], with zero mean in every group.

    on: `align.weight` * A0 for rollouts that are right, as in mode rlvr of METHOD section 3. blind: the
    same for all rollouts of the groups without spread in accuracy, where the rewards say nothing.
    """
    config, group_size = context.config.align, context.config.rlvr.group_size
    aligned_R = aligned_advantages(
        judged.perception_R,
        judged.reasoning_R,
        group_size=group_size,
        well_formed_R=judged.well_formed_R,
        alpha=config.alpha,
        floors=floors,
    )
    accuracy_R = accuracy_of(batch.groups, batch.rewards)
    if context.config.rlvr.game == "on":
        counts_R = accuracy_R >= 0.5
    else:
        is_decided_R = ~accuracy_R.isnan()
        zscore_R = group_zscore(accuracy_R, group_size=group_size, counted_R=is_decided_R)
        counts_R = ~zscore_R.view(-1, group_size).any(1).repeat_interleave(group_size)
    return center_groups(config.weight * counts_R * aligned_R, group_size=group_size)


def _reward_metrics(batch: RolloutBatch, reward_R: Tensor, group_size: int) -> dict[str, float]:
    """Compute the metrics of the rewards of the policy's own rollouts."""
    is_teacher_R = torch.tensor([r.is_teacher for group in batch.groups for r in group.rollouts])
    own = {
        name: value_R.masked_fill(is_teacher_R, math.nan) for name, value_R in batch.rewards.items()
    }
    return reward_metrics(reward_R.masked_fill(is_teacher_R, math.nan), own, group_size=group_size)


def _advantages(context: Context, batch: RolloutBatch) -> tuple[Tensor, dict[str, float]]:
    """Return advantage_R, 0 in groups that are not kept, and the metric of a KL in the reward."""
    config, is_kept_R = context.config.rlvr, batch.is_kept_R
    rewards = {name: value_R[is_kept_R] for name, value_R in batch.rewards.items()}
    weights, metrics = context.reward_weights, {}
    if config.kl_in == "reward" and config.kl_weight > 0 and batch.kept:
        temperature = context.config.sampling.temperature
        kl_R = rollout_kl(context.backbone, batch.kept, config.kl_kind, temperature=temperature)
        if not kl_R.isfinite().all():  # NaN would count as a reward without opinion
            raise NotFiniteError("the KL of a rollout to the reference is not finite")
        is_scored_R = ~weighted_sum(rewards, weights).isnan()
        rewards |= {"kl": torch.where(is_scored_R, -kl_R, torch.nan)}
        weights |= {"kl": config.kl_weight}
        num_tokens = sum(len(r.token_ids) for group in batch.kept for r in group.rollouts)
        metrics["kl"] = float(kl_R.sum()) / num_tokens
    advantage_R = torch.zeros(len(is_kept_R))
    advantage_R[is_kept_R] = reward_advantages(
        rewards,
        weights,
        group_size=config.group_size,
        scale=config.scale,
        combine=config.combine,
    )
    return advantage_R, metrics


def _print_settings(context: Context) -> None:
    """Print what the ratio and its clipping do with these settings."""
    config, console = context.config.rlvr, context.run.console
    if config.num_minibatches == 1:
        updates = (
            "one optimizer step per batch: the ratio is 1, clipping has no effect, and no old "
            "log-probs are computed"
        )
    else:
        updates = (
            f"{config.num_minibatches} optimizer steps per batch: old log-probs are computed once "
            "per batch, before the first"
        )
    say(console, f"rlvr: {config.loss.name} loss, {updates}")
    if config.loss.name.startswith("gspo") and config.loss.clip_high > _WIDEST_GSPO_CLIP:
        say(
            console,
            f"rlvr.loss.clip_high = {config.loss.clip_high:g} suits ratios of tokens; GSPO's "
            "are of complete rollouts and need about 4e-4: rlvr.preset=gspo sets the official "
            "values",
            "yellow",
        )


def _running_out_message(batch: RolloutBatch, config: RlvrConfig, step: int) -> str:
    num_kept, num_filtered = int(batch.is_kept_P.sum()), int((~batch.is_kept_P).sum())
    return (
        f"rlvr step {step}: dynamic sampling drew {len(batch.groups)} groups (at most "
        f"rlvr.max_sampled_batches = {config.max_sampled_batches} batches), left out {num_filtered} "
        f"without spread in their rewards, and continues with {num_kept} instead of "
        f"{config.prompts_per_step}; metrics: dynamic_sampling/* (shown once)"
    )
