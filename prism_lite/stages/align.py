"""Stage 3, adversarial alignment: policy against discriminator on the policy's own samples.

METHOD section 3. No KL term: anchoring to the SFT policy would preserve the drift this repairs.

Shape letters: P prompts, G rollouts per prompt, R = P * G rollouts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from random import Random
from typing import Any

from torch import Tensor

from prism_lite.config import AlignConfig
from prism_lite.console import say
from prism_lite.discriminator.step import JudgedPrompt
from prism_lite.models.optim import learning_rate_at
from prism_lite.parts import Parts
from prism_lite.policy.advantages import Verified, alignment_advantages, weighted_sum
from prism_lite.policy.step import update_policy
from prism_lite.rewards.group_rewards import accuracy_of, rewards_of
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.seeding import samples_at, seed_of
from prism_lite.stages.alarms.discriminator import cut_parts, game_alarms
from prism_lite.stages.alarms.rewards import undecided_answers
from prism_lite.stages.alarms.stage import Alarms
from prism_lite.stages.context import Context
from prism_lite.stages.drift import kl_of_step
from prism_lite.stages.game import JudgedRollouts, RunningSpread, judge_rollouts, panel_if_due
from prism_lite.stages.gate import check_gate
from prism_lite.stages.rollout_log import (
    reward_metrics,
    rollout_metrics,
    rollout_records,
    undecided_metrics,
)
from prism_lite.types import Group, Sample


def run_align(context: Context) -> None:
    """Run adversarial alignment, starting from the SFT policy and the warmed-up discriminator."""
    config, disc_config = context.config.align, context.config.discriminator
    backbone, run, task = context.backbone, context.run, context.task
    seed, sampling = context.config.seed, context.config.sampling
    discriminator = context.load_discriminator("warmup")
    start = context.run.load_final("sft")["policy"]
    backbone.load_adapter_state(start)
    optimizers = {
        "policy": context.optimizer(config.optim),
        "discriminator": context.optimizer(disc_config.optim, discriminator),
    }
    replay = Replay(task.align, num_prompts=config.replay_prompts)
    spread = RunningSpread(config.spread_floor)
    alarms = Alarms(run, "align")
    for step in context.steps(
        "align",
        config.steps,
        optimizers,
        discriminator=discriminator,
        buffers={"replay": replay, "spread": spread},
    ):
        if step == run.first_step:
            check_gate(context, discriminator)
        # 1. sample G completions of each prompt from the current policy; split into parts
        started_s = time.perf_counter()
        run.batch = samples_at(task.align, step, config.prompts_per_step, seed, "align")
        groups = sample_groups(
            backbone,
            run.batch,
            group_size=config.group_size,
            sampling=sampling,
            seed=(seed, "align", step),
        )
        generated_s = time.perf_counter() - started_s
        # 2. one discriminator forward: detached scores are the reward, attached ones its loss
        judged = judge_rollouts(
            context,
            discriminator,
            optimizers["discriminator"],
            groups,
            learning_rate=learning_rate_at(disc_config.optim, step, config.steps),
            replayed=_replayed(context, replay, step),
        )
        game = judged.game
        if config.replay_fraction > 0:
            replay.add(groups)
        # 3. advantage: z-score per channel over the well-formed, penalty for the rest, centred
        rewards = rewards_of(groups, context.rewards) if config.mode != "align" else {}
        verified = _verified(context, groups, rewards) if rewards else None
        floors = spread.floors(judged, group_size=config.group_size)
        advantage_R = _advantages(config, judged, floors, verified)
        # (written before the policy's step: if it fails, its rollouts can be inspected)
        records = rollout_records(groups, advantage_R, judged.scores, rewards)
        run.write_rollouts("align", step, records)
        # 4. policy-gradient step
        kl_to_start = kl_of_step(backbone, start, groups, temperature=sampling.temperature)
        metrics = {"kl_to_start": kl_to_start} | update_policy(
            backbone,
            optimizers["policy"],
            groups,
            advantage_R,
            sampling=sampling,
            optim=config.optim,
            learning_rate=learning_rate_at(config.optim, step, config.steps),
            loss=config.loss,
            num_minibatches=config.num_minibatches,
        )
        metrics |= game.metrics | rollout_metrics(groups, generated_s=generated_s)
        if verified is not None:
            metrics |= reward_metrics(verified.reward_R, rewards, group_size=config.group_size)
            metrics |= undecided_metrics(groups, rewards)
        figures, lost = panel_if_due(context, discriminator, "align", step, config.steps)
        metrics |= figures
        checked = [
            *alarms.of_rollouts(groups),
            *game_alarms(game, score_cap=disc_config.score_cap),
            cut_parts(game, max_part_tokens=disc_config.max_part_tokens),
            undecided_answers(metrics.get("rewards/accuracy/undecided", 0.0)),
            lost,
        ]
        metrics |= alarms.report(checked, step)
        run.log("align", step, metrics)
        if lost is not None and config.early_stop:
            say(run.console, f"alignment ends after {step + 1} of {config.steps} steps")
            run.ends_stage = True
    tensors = {"policy": backbone.adapter_state(), "discriminator": discriminator.state_dict()}
    run.save_final("align", tensors)


def _advantages(
    config: AlignConfig,
    judged: JudgedRollouts,
    floors: tuple[float, float],
    verified: Verified | None,
) -> Tensor:
    """Return the advantage of each rollout [R] by `align.mode`."""
    return alignment_advantages(
        judged.perception_R,
        judged.reasoning_R,
        group_size=config.group_size,
        well_formed_R=judged.well_formed_R,
        alpha=config.alpha,
        floors=floors,
        malformed_penalty=config.malformed_penalty,
        mode=config.mode,
        verified=verified,
        weight=config.weight,
        wrong_penalty=config.wrong_penalty,
    )


def _replayed(context: Context, replay: Replay, step: int) -> list[JudgedPrompt]:
    """Choose earlier students so that they form `replay_fraction` of the batch's prompts."""
    config = context.config.align
    count = round(config.prompts_per_step * config.replay_fraction / (1 - config.replay_fraction))
    rng = Random(seed_of(context.config.seed, "align", step, "replay"))
    return [
        JudgedPrompt(context.backbone.prompt(sample), sample.teacher_parts, students)
        for sample, students in replay.sample(count, rng)
    ]


class Replay:
    """The well-formed rollouts of the most recent prompts, against forgetting; in the checkpoints."""

    def __init__(self, samples: Sequence[Sample], *, num_prompts: int) -> None:
        self._samples = {sample.key: sample for sample in samples}
        self._num_prompts = num_prompts
        self._kept: list[tuple[Sample, tuple[Parts, ...]]] = []

    def sample(self, count: int, rng: Random) -> list[tuple[Sample, tuple[Parts, ...]]]:
        """Choose `count` of the kept prompts, or all if there are fewer."""
        return rng.sample(self._kept, min(count, len(self._kept)))

    def add(self, groups: Sequence[Group]) -> None:
        """Keep these groups; the oldest ones are dropped."""
        self._kept += [(group.sample, group.students) for group in groups if group.students]
        self._kept = self._kept[-self._num_prompts :]

    def state(self) -> list[Any]:
        """Return JSON-able content: each prompt's key, its teacher's number, the parts of its students."""
        return [
            [
                sample.key,
                self._samples[sample.key].teachers.index(sample.teacher or ""),
                [[p.caption, p.think, p.answer] for p in students],
            ]
            for sample, students in self._kept
        ]

    def load(self, state: Sequence[Any]) -> None:
        """Restore what `state` returned."""
        self._kept = [
            (self._samples[key].with_teacher(number), tuple(Parts(*bodies) for bodies in students))
            for key, number, students in state
        ]


def _verified(context: Context, groups: Sequence[Group], rewards: dict[str, Tensor]) -> Verified:
    """Return the weighted reward, and who is wrong whether or not accuracy is among the rewards."""
    is_wrong_R = accuracy_of(groups, rewards) < 0.5
    return Verified(weighted_sum(rewards, context.reward_weights), is_wrong_R)
