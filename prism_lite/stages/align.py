"""Stage 3, adversarial alignment: policy against discriminator on the policy's own samples.

METHOD section 3. No KL term: anchoring to the SFT policy would preserve the drift this repairs.

Shape letters: P prompts, G rollouts per prompt, R = P * G rollouts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from prism_lite.discriminator.probes import GROUNDED, first_wins, grounding_probe, pair_scores
from prism_lite.discriminator.step import GameScores, Judged, discriminator_step
from prism_lite.models.optim import learning_rate_at, make_optimizer
from prism_lite.parts import Parts
from prism_lite.policy.advantages import Verified, alignment_advantages, debias_length, weighted_sum
from prism_lite.policy.losses import PolicyLossConfig
from prism_lite.policy.step import update_policy
from prism_lite.rewards.group_rewards import reward_weights, verifiable_rewards
from prism_lite.runs.checkpoint import Trained
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.seeding import batch_at, seed_of
from prism_lite.stages.alarms import Alarms, of_cuts, of_game
from prism_lite.stages.context import Context
from prism_lite.stages.replay import Replay
from prism_lite.stages.rollout_log import reward_metrics, rollout_metrics, rollout_records
from prism_lite.types import Group


def run_align(context: Context) -> None:
    """Play the game from the SFT policy and the warm discriminator."""
    config, backbone, run, task = (
        context.config.align,
        context.backbone,
        context.run,
        context.task,
    )
    seed, sampling = context.config.seed, context.config.sampling
    disc_config = context.config.discriminator
    discriminator = context.load_discriminator("warmup")
    context.load_policy("sft")
    scales_loss = backbone.precision.scales_loss
    optimizers = {
        "policy": make_optimizer(
            backbone.policy_parameters(), config.optim, scales_loss=scales_loss
        ),
        "discriminator": make_optimizer(
            list(discriminator.parameters()), disc_config.optim, scales_loss=scales_loss
        ),
    }
    replay = Replay(task.align, num_prompts=config.replay_prompts)
    start = context.resume("align", optimizers, discriminator, replay)
    if start == 0:
        _check_grounding(context, discriminator)
    alarms = Alarms(run, "align")

    def tensors() -> dict[str, dict[str, Tensor]]:
        return {"policy": backbone.adapter_state(), "discriminator": discriminator.state_dict()}

    def trained() -> Trained:
        return Trained(tensors(), optimizers, {"replay": replay.state()})

    for step in run.steps("align", start, config.steps, trained):
        started_s = time.perf_counter()
        # 1. sample G completions of each prompt from the current policy; split into parts
        groups = sample_groups(
            backbone,
            batch_at(task.align, step, config.prompts_per_step, seed, "align"),
            group_size=config.group_size,
            sampling=sampling,
            seed=(seed, "align", step),
        )
        generated_s = time.perf_counter() - started_s
        # 2. one discriminator forward: detached scores are the reward, attached ones its loss
        game = discriminator_step(
            backbone,
            discriminator,
            optimizers["discriminator"],
            _judge(context, groups),
            disc_config,
            learning_rate=learning_rate_at(disc_config.optim, step, config.steps),
            max_grad_norm=disc_config.optim.max_grad_norm,
            replayed=_replayed(context, replay, step),
        )
        if config.replay_fraction > 0:
            replay.add(groups)
        # 3. advantage: z-score per channel over the well-formed, penalty for the rest, centred
        perception_R, reasoning_R, well_formed_R = _per_rollout(groups, game)
        rewards = verifiable_rewards(groups) if config.mode != "align" else {}
        verified = _verified(context, rewards) if rewards else None
        advantage_R = alignment_advantages(
            _debiased(context, groups, perception_R, "perception"),
            _debiased(context, groups, reasoning_R, "reasoning"),
            group_size=config.group_size,
            well_formed_R=well_formed_R,
            alpha=config.alpha,
            malformed_penalty=config.malformed_penalty,
            mode=config.mode,
            verified=verified,
            weight=config.weight,
            wrong_penalty=config.wrong_penalty,
        )
        # (written first: where a step fails, its rollouts can be looked at)
        scores = {"perception_score": perception_R, "reasoning_score": reasoning_R}
        run.write_rollouts("align", step, rollout_records(groups, advantage_R, scores, rewards))
        # 4. policy-gradient step
        metrics = update_policy(
            backbone,
            optimizers["policy"],
            groups,
            advantage_R,
            temperature=sampling.temperature,
            optim=config.optim,
            learning_rate=learning_rate_at(config.optim, step, config.steps),
            loss=PolicyLossConfig(),
        )
        metrics |= game.metrics | rollout_metrics(groups, generated_s=generated_s)
        if verified is not None:
            metrics |= reward_metrics(verified.reward_R, rewards, group_size=config.group_size)
        seen = [*alarms.of_rollouts(groups), *of_game(game, score_cap=disc_config.score_cap)]
        seen.append(of_cuts(game, max_part_tokens=disc_config.max_part_tokens))
        metrics |= alarms.ring(seen, step)
        if step % config.panel_every == 0 or step + 1 == config.steps:
            metrics |= _panel(context, discriminator, step)
        run.log("align", step, metrics)
    run.save_final("align", tensors())


def _judge(context: Context, groups: Sequence[Group]) -> list[Judged]:
    """Teacher and well-formed students of each prompt that has any."""
    judged = []
    for group in groups:
        students = group.students
        if students:
            prompt = context.backbone.prompt(group.sample)
            judged.append(Judged(prompt, group.sample.teacher_parts, students))
    return judged


def _per_rollout(groups: Sequence[Group], game: GameScores) -> tuple[Tensor, Tensor, Tensor]:
    """perception_R, reasoning_R (0 where malformed, never looked at) and well_formed_R."""
    well_formed_R = torch.tensor([r.is_well_formed for group in groups for r in group.rollouts])
    score_R2 = torch.zeros(len(well_formed_R), 2)
    if game.students:
        score_R2[well_formed_R] = torch.cat(game.students).float().cpu()
    return score_R2[:, 0], score_R2[:, 1], well_formed_R


def _replayed(context: Context, replay: Replay, step: int) -> list[Judged]:
    """Earlier students for the discriminator's batch, `replay_fraction` of it in prompts."""
    config = context.config.align
    count = round(config.prompts_per_step * config.replay_fraction / (1 - config.replay_fraction))
    rng = Random(seed_of(context.config.seed, "align", step, "replay"))
    return [
        Judged(context.backbone.prompt(sample), sample.teacher_parts, students)
        for sample, students in replay.draw(count, rng)
    ]


def _debiased(context: Context, groups: Sequence[Group], score_R: Tensor, part: str) -> Tensor:
    """The scores, less what the part's length alone may have earned where that is asked for."""
    beta = context.config.align.length_debias
    if beta == 0:
        return score_R
    num_tokens = [
        len(context.backbone.tokenize(getattr(rollout.parts, part), end=False))
        if isinstance(rollout.parts, Parts)
        else 0
        for group in groups
        for rollout in group.rollouts
    ]
    return debias_length(score_R, num_tokens, beta)


def _verified(context: Context, rewards: dict[str, Tensor]) -> Verified:
    reward_R = weighted_sum(rewards, reward_weights(context.config.rlvr))
    return Verified(reward_R, rewards["accuracy"] < 0.5)


def _check_grounding(context: Context, discriminator) -> None:
    found = grounding_probe(context.backbone, discriminator, context.task.probe)
    if not found:
        context.run.console.print(
            "[yellow]no held-out pairs: whether the discriminator judges content was not measured "
            "(it needs at least 20 rows with a teacher completion)[/]"
        )
    for name, value in found.items():
        if value < GROUNDED:
            context.run.console.print(
                f"[bold red]{name} is {value:.2f}, near chance: the discriminator does not judge "
                "content on this channel, and alignment will follow style. Train the warm-up longer "
                "(warmup.steps) or keep discriminator.likelihood_features on.[/]"
            )


def _panel(context: Context, discriminator, step: int) -> dict[str, float]:
    """Held-out pair accuracy per channel and the grounding probe: the convergence panel."""
    task, config = context.task, context.config
    groups = sample_groups(
        context.backbone,
        [pair.sample for pair in task.probe],
        group_size=1,
        sampling=config.sampling,
        seed=(config.seed, "align", step, "panel"),
    )
    pairs = [(item.prompt, item.teacher, item.students[0]) for item in _judge(context, groups)]
    panel = grounding_probe(context.backbone, discriminator, task.probe)
    if pairs:
        wins = first_wins(pair_scores(context.backbone, discriminator, pairs))
        (
            panel["disc/heldout_pair_accuracy_perception"],
            panel["disc/heldout_pair_accuracy_reasoning"],
        ) = wins
    return panel
