"""Stage 4, RLVR: verifiable rewards, from the aligned policy (or SFT's). METHOD section 4.

Shape letters: P prompts, G rollouts per prompt, R = P * G rollouts.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from prism_lite.config import RlvrConfig
from prism_lite.models.backbone import REFERENCE
from prism_lite.models.optim import learning_rate_at, make_optimizer
from prism_lite.policy.advantages import reward_advantages, weighted_sum
from prism_lite.policy.losses import PolicyLossConfig
from prism_lite.policy.step import rollout_kl, update_policy
from prism_lite.rewards.group_rewards import reward_weights
from prism_lite.runs.checkpoint import Trained
from prism_lite.stages.alarms import Alarms
from prism_lite.stages.context import Context
from prism_lite.stages.guards import zero_spread_groups
from prism_lite.stages.rollout_batches import Draw, draw_groups
from prism_lite.stages.rollout_log import reward_metrics, rollout_metrics, rollout_records

WIDEST_GSPO_CLIP = (
    0.01  # above: bounds of token ratios, at which a ratio of completions never arrives
)


def run_rlvr(context: Context) -> None:
    """Reinforce right answers in the right format, from the aligned policy."""
    config, backbone, run = context.config.rlvr, context.backbone, context.run
    context.load_policy(config.start)
    backbone.drop_adapter(REFERENCE)
    if config.kl_weight > 0 and config.kl_reference == "start":
        backbone.freeze_copy(REFERENCE)
    optimizer = make_optimizer(
        backbone.policy_parameters(), config.optim, scales_loss=backbone.precision.scales_loss
    )
    start = context.resume("rlvr", {"policy": optimizer})
    run.console.print(_about_updates(config))
    if config.loss.startswith("gspo") and config.clip_high > WIDEST_GSPO_CLIP:
        run.console.print(
            f"[yellow]rlvr.clip_high = {config.clip_high:g} is made for ratios of tokens; GSPO's are of "
            "whole completions and need about 4e-4: rlvr.algorithm=gspo sets the official values[/]"
        )
    alarms, has_run_out = Alarms(run, "rlvr"), False

    def trained() -> Trained:
        return Trained({"policy": backbone.adapter_state()}, {"policy": optimizer})

    for step in run.steps("rlvr", start, config.steps, trained):
        started_s = time.perf_counter()
        # 1. sample groups, verify them; with dynamic sampling replace those that teach nothing
        draw = draw_groups(context, step)
        generated_s = time.perf_counter() - started_s
        if draw.ran_out and not has_run_out:
            has_run_out = True
            run.console.print(_about_running_out(draw, config, step))
        # 2. advantages of the groups that are kept
        reward_R = weighted_sum(draw.rewards, reward_weights(config))
        advantage_R, metrics = _advantages(context, draw)
        # (written first: where a step fails, its rollouts can be looked at)
        records = rollout_records(draw.groups, advantage_R, {}, draw.rewards)
        run.write_rollouts("rlvr", step, records)
        # 3. policy-gradient step
        metrics |= update_policy(
            backbone,
            optimizer,
            draw.kept,
            advantage_R[draw.is_kept_R],
            temperature=context.config.sampling.temperature,
            optim=config.optim,
            learning_rate=learning_rate_at(config.optim, step, config.steps),
            loss=policy_loss_config(config, context.config.sampling.max_completion_tokens),
            num_minibatches=config.num_minibatches,
            mask_truncated=config.mask_truncated,
        )
        metrics = rollout_metrics(draw.groups, generated_s=generated_s) | metrics | draw.metrics
        metrics |= reward_metrics(reward_R, draw.rewards, group_size=config.group_size)
        spread = zero_spread_groups(reward_R.tolist(), group_size=config.group_size)
        metrics |= alarms.ring([*alarms.of_rollouts(draw.groups), spread], step)
        run.log("rlvr", step, metrics)
    run.save_final("rlvr", {"policy": backbone.adapter_state()})


def policy_loss_config(config: RlvrConfig, max_completion_tokens: int) -> PolicyLossConfig:
    """What `losses.policy_loss` needs of these settings."""
    return PolicyLossConfig(
        kind=config.loss,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        clip_dual=config.clip_dual,
        sapo_temperature_positive=config.sapo_temperature_positive,
        sapo_temperature_negative=config.sapo_temperature_negative,
        max_completion_tokens=max_completion_tokens,
        kl_weight=config.kl_weight if config.kl_in == "loss" else 0.0,
        kl_kind=config.kl_kind,
        entropy_weight=config.entropy_weight,
    )


def _advantages(context: Context, draw: Draw) -> tuple[Tensor, dict[str, float]]:
    """Of every rollout, 0 where its group was filtered; and the KL's metric if it is a reward."""
    config, is_kept_R = context.config.rlvr, draw.is_kept_R
    rewards = {name: value_R[is_kept_R] for name, value_R in draw.rewards.items()}
    weights, metrics = reward_weights(config), {}
    if config.kl_in == "reward" and config.kl_weight > 0 and draw.kept:
        kl_R = rollout_kl(
            context.backbone,
            draw.kept,
            config.kl_kind,
            temperature=context.config.sampling.temperature,
        )
        rewards, weights = rewards | {"kl": -kl_R}, weights | {"kl": config.kl_weight}
        num_tokens = sum(len(r.token_ids) for group in draw.kept for r in group.rollouts)
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


def _about_updates(config: RlvrConfig) -> str:
    if config.num_minibatches == 1:
        return (
            f"rlvr: {config.loss} loss, one optimizer step per batch: the ratio is 1, clipping never "
            "acts, and no old log-probs are computed"
        )
    return (
        f"rlvr: {config.loss} loss, {config.num_minibatches} optimizer steps per batch: old "
        "log-probs are computed once per batch, before the first"
    )


def _about_running_out(draw: Draw, config: RlvrConfig, step: int) -> str:
    kept, filtered = int(draw.is_kept_P.sum()), int((~draw.is_kept_P).sum())
    return (
        f"[yellow]rlvr step {step}: dynamic sampling drew {len(draw.groups)} groups (at most "
        f"rlvr.max_sampled_batches = {config.max_sampled_batches} batches), left out {filtered} that "
        f"were all right or all wrong, and goes on with {kept} instead of "
        f"{config.prompts_per_step}; metrics: dynamic_sampling/* (said once)[/]"
    )
