"""Stage 4, RLVR: GRPO on verifiable rewards, from the aligned policy (or SFT's). METHOD section 4.

Shape letters: P prompts, G rollouts per prompt, R = P * G rollouts.
"""

from __future__ import annotations

import time

from torch import Tensor

from prism_lite.advantages import reward_advantages
from prism_lite.checkpoint import Trained
from prism_lite.config import RlvrConfig
from prism_lite.losses import PolicyLossConfig
from prism_lite.models.backbone import REFERENCE
from prism_lite.optim import learning_rate_at, make_optimizer
from prism_lite.policy import update_policy
from prism_lite.records import reward_metrics, rollout_metrics, rollout_records
from prism_lite.rewards.of_groups import verifiable_rewards
from prism_lite.rollouts import sample_groups
from prism_lite.run_folder import peak_gib
from prism_lite.seeding import batch_at
from prism_lite.stages.context import Context


def run_rlvr(context: Context) -> None:
    """Reinforce right answers in the right format, from the aligned policy."""
    config, backbone, run, task = (
        context.config.rlvr,
        context.backbone,
        context.run,
        context.task,
    )
    seed, sampling = context.config.seed, context.config.sampling
    context.load_policy(config.start)
    if config.kl_weight > 0:
        backbone.freeze_copy(REFERENCE)
    optimizer = make_optimizer(
        backbone.policy_parameters(), config.optim, scales_loss=backbone.precision.scales_loss
    )
    start = context.resume("rlvr", {"policy": optimizer})

    def trained() -> Trained:
        return Trained({"policy": backbone.adapter_state()}, {"policy": optimizer})

    for step in run.steps("rlvr", start, config.steps, trained):
        started_s = time.perf_counter()
        groups = sample_groups(
            backbone,
            batch_at(task.rlvr, step, config.prompts_per_step, seed, "rlvr"),
            group_size=config.group_size,
            sampling=sampling,
            system_prompt=task.system_prompt,
            seed=(seed, "rlvr", step),
        )
        generated_s = time.perf_counter() - started_s
        rewards = verifiable_rewards(groups)
        reward_R = weigh(rewards, config)
        advantage_R = reward_advantages(reward_R, group_size=config.group_size)
        metrics = update_policy(
            backbone,
            optimizer,
            groups,
            advantage_R,
            system_prompt=task.system_prompt,
            temperature=sampling.temperature,
            optim=config.optim,
            learning_rate=learning_rate_at(config.optim, step, config.steps),
            loss=PolicyLossConfig(config.clip_low, config.clip_high, config.clip_dual),
            num_minibatches=config.num_minibatches,
            kl_weight=config.kl_weight,
        )
        metrics |= rollout_metrics(groups, generated_s=generated_s)
        metrics |= reward_metrics(reward_R, rewards, group_size=config.group_size)
        times = {"step_time": time.perf_counter() - started_s, "mem/peak_gib": peak_gib()}
        run.log("rlvr", step, metrics | times)
        run.write_rollouts("rlvr", step, rollout_records(groups, advantage_R, {}, rewards))
    run.save_final("rlvr", {"policy": backbone.adapter_state()})


def weigh(rewards: dict[str, Tensor], config: RlvrConfig) -> Tensor:
    """accuracy_weight * accuracy + format_weight * format, float32 [R]."""
    return config.accuracy_weight * rewards["accuracy"] + config.format_weight * rewards["format"]
