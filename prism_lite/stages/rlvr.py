"""Stage 4, RLVR: verifiable rewards, from the aligned policy (or SFT's). METHOD section 4.

Shape letters: P prompts, G rollouts per prompt, R = P * G rollouts.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from prism_lite.config import RlvrConfig
from prism_lite.models.backbone import REFERENCE
from prism_lite.models.optim import learning_rate_at
from prism_lite.policy.advantages import fill_unscored, reward_advantages, weighted_sum
from prism_lite.policy.step import rollout_kl, update_policy
from prism_lite.stages.alarms import Alarms
from prism_lite.stages.context import Context
from prism_lite.stages.guards import unscored_rollouts, zero_spread_groups
from prism_lite.stages.rollout_batches import RolloutBatch, sample_batch
from prism_lite.stages.rollout_log import reward_metrics, rollout_metrics, rollout_records

WIDEST_GSPO_CLIP = 0.01  # a wider bound is meant for ratios of tokens; ratios of rollouts vary less


def run_rlvr(context: Context) -> None:
    """Reinforce right answers in the right format."""
    config, backbone, run = context.config.rlvr, context.backbone, context.run
    context.load_policy(config.start)
    backbone.drop_adapter(REFERENCE)
    if config.kl_weight > 0 and config.kl_reference == "start":
        backbone.freeze_copy(REFERENCE)
    optimizer = context.optimizer(config.optim)
    _print_settings(context)
    alarms, has_run_out = Alarms(run, "rlvr"), False
    for step in context.steps("rlvr", config.steps, {"policy": optimizer}):
        # 1. sample and reward groups; with dynamic sampling replace those without spread
        started_s = time.perf_counter()
        batch = sample_batch(context, step)
        generated_s = time.perf_counter() - started_s
        if batch.ran_out and not has_run_out:
            has_run_out = True
            run.console.print(_running_out_message(batch, config, step))
        # 2. advantages of the groups that are kept
        reward_R = weighted_sum(batch.rewards, context.reward_weights)
        advantage_R, metrics = _advantages(context, batch)
        # (written before the policy's step: if it fails, its rollouts can be inspected)
        records = rollout_records(batch.groups, advantage_R, {}, batch.rewards)
        run.write_rollouts("rlvr", step, records)
        # 3. policy-gradient step
        metrics |= update_policy(
            backbone,
            optimizer,
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
        metrics = rollout_metrics(batch.groups, generated_s=generated_s) | metrics | batch.metrics
        metrics |= reward_metrics(reward_R, batch.rewards, group_size=config.group_size)
        filled_R = fill_unscored(reward_R, group_size=config.group_size)
        checked = [
            *alarms.of_rollouts(batch.groups),
            zero_spread_groups(filled_R.tolist(), group_size=config.group_size),
            unscored_rollouts(reward_R.tolist()),
        ]
        metrics |= alarms.report(checked, step)
        run.log("rlvr", step, metrics)
    run.save_final("rlvr", {"policy": backbone.adapter_state()})


def _advantages(context: Context, batch: RolloutBatch) -> tuple[Tensor, dict[str, float]]:
    """Return advantage_R, 0 in groups that are not kept, and the metric of a KL in the reward."""
    config, is_kept_R = context.config.rlvr, batch.is_kept_R
    rewards = {name: value_R[is_kept_R] for name, value_R in batch.rewards.items()}
    weights, metrics = context.reward_weights, {}
    if config.kl_in == "reward" and config.kl_weight > 0 and batch.kept:
        temperature = context.config.sampling.temperature
        kl_R = rollout_kl(context.backbone, batch.kept, config.kl_kind, temperature=temperature)
        assert kl_R.isfinite().all(), "NaN would count as a reward without opinion"
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
    console.print(f"rlvr: {config.loss.name} loss, {updates}")
    if config.loss.name.startswith("gspo") and config.loss.clip_high > WIDEST_GSPO_CLIP:
        console.print(
            f"[yellow]rlvr.loss.clip_high = {config.loss.clip_high:g} suits ratios of tokens; GSPO's "
            "are of complete rollouts and need about 4e-4: rlvr.preset=gspo sets the official "
            "values[/]"
        )


def _running_out_message(batch: RolloutBatch, config: RlvrConfig, step: int) -> str:
    num_kept, num_filtered = int(batch.is_kept_P.sum()), int((~batch.is_kept_P).sum())
    return (
        f"[yellow]rlvr step {step}: dynamic sampling drew {len(batch.groups)} groups (at most "
        f"rlvr.max_sampled_batches = {config.max_sampled_batches} batches), left out {num_filtered} "
        f"that were all right or all wrong, and continues with {num_kept} instead of "
        f"{config.prompts_per_step}; metrics: dynamic_sampling/* (shown once)[/]"
    )
