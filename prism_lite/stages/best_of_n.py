"""Stage 3 with `align.method: best_of_n`: the policy imitates its own best accepted samples.

Rejection sampling, a baseline without a teacher: the SFT policy answers each prompt `align.group_size`
times, before the first step; of the rollouts that are right the one with the highest reward is kept. It
samples as many rollouts as it then learns from, so that a step costs as many as one of alignment.
"""

from __future__ import annotations

import math

from prism_lite.console import say
from prism_lite.policy.advantages import weighted_sum
from prism_lite.rewards.group_rewards import accuracy_of, rewards_of
from prism_lite.runs.retry import repeat_with
from prism_lite.sampling.many_prompts import sample_in_pieces
from prism_lite.seeding import batch_at
from prism_lite.stages.context import Context
from prism_lite.stages.sft import imitate
from prism_lite.types import Sample


def run_best_of_n(context: Context) -> None:
    """Train the SFT policy on the best accepted rollout of each prompt.

    Raises:
        ValueError: the verifier accepts none.
    """
    config = context.config.align
    context.load_policy("sft")
    best = _best_rollouts(context) if config.steps else []
    completions = {sample.key: text for sample, text in best}
    imitate(
        context,
        "align",
        [sample for sample, _ in best],
        lambda sample: completions[sample.key],
        num_steps=config.steps,
        batch_size=config.prompts_per_step,
        optim=config.optim,
    )


def _best_rollouts(context: Context) -> list[tuple[Sample, str]]:
    """Return the prompts with an accepted rollout, each with the text of its best one."""
    config = context.config.align
    num_prompts = math.ceil(config.steps * config.prompts_per_step / config.group_size)
    samples = batch_at(context.task.align, 0, num_prompts, context.config.seed, "align")
    groups = sample_in_pieces(
        context.backbone,
        list({sample.key: sample for sample in samples}.values()),
        with_progress=context.run.with_progress,
        description=f"sampling {config.group_size} rollouts of {num_prompts} prompts",
        group_size=config.group_size,
        sampling=context.config.sampling,
        seed=(context.config.seed, "align", "best of n"),
    )
    rewards = rewards_of(groups, context.rewards)
    reward_PG = weighted_sum(rewards, context.reward_weights).view(-1, config.group_size)
    accuracy_PG = accuracy_of(groups, rewards).view(-1, config.group_size)
    best = []
    for group, reward_G, accuracy_G in zip(
        groups, reward_PG.nan_to_num(-math.inf).tolist(), accuracy_PG.tolist(), strict=True
    ):
        accepted = [
            (reward, rollout.text)
            for reward, accuracy, rollout in zip(reward_G, accuracy_G, group.rollouts, strict=True)
            if rollout.is_well_formed and accuracy >= 0.5
        ]
        if accepted:
            best.append((group.sample, max(accepted, key=lambda pair: pair[0])[1]))
    say(
        context.run.console,
        f"best of {config.group_size}: the verifier accepts a rollout of {len(best)} of {len(groups)} "
        "prompts",
    )
    if not best:
        raise ValueError(
            f"the verifier accepts none of the {config.group_size * len(groups)} rollouts that "
            "align.method = best_of_n would imitate: repeat with another align.method, or more sft.steps"
            f"{repeat_with(context.run, {'sft.steps': '*2'})}"
        )
    return best
