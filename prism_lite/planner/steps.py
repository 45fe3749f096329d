"""The real steps of each stage, on a backbone that is simulated, or real in the test that compares both.

What lies in memory around them was brought there by `memory.py`: `run_phase` calls the stage's own step.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from prism_lite.config import RunConfig
from prism_lite.discriminator.step import discriminator_step
from prism_lite.models.backbone import Backbone
from prism_lite.models.families import qwen3_vl as family
from prism_lite.planner.resident import Memory, fill_gradients
from prism_lite.planner.tracker import Tracker, watch_layers, watch_tower
from prism_lite.planner.workload import PhaseName, Stage, Workload, sampling_batch
from prism_lite.policy.step import update_policy
from prism_lite.sampling import rollouts
from prism_lite.sampling.draw import Drawn
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.stages.sft import sft_step


def run_phase(
    tracker: Tracker,
    config: RunConfig,
    backbone: Backbone,
    workload: Workload,
    memory: Memory,
    stage: Stage,
    phase: PhaseName,
) -> None:
    """One phase of a stage's step, marked by layers (train, judge) or drawn tokens (sample)."""
    handles = watch_layers(tracker, family.decoder_layers(backbone.core))
    handles.append(register_optimizer_step_pre_hook(lambda *_: tracker.mark(("optimizer",))))
    handles += watch_tower(tracker, family.vision_tower(backbone.core))
    tracker.mark((phase,))
    try:
        if phase == "sample":
            _sample(tracker, config, backbone, workload, stage)
        elif phase == "judge":
            assert memory.discriminator is not None
            parameters = list(memory.discriminator.parameters())
            handles += _watch_gradients(tracker, parameters)
            _judge(config, backbone, workload, memory, stage)
        else:
            handles += _watch_gradients(tracker, backbone.policy_parameters())
            _train(config, backbone, workload, memory, stage)
    finally:
        for handle in handles:
            handle.remove()
    tracker.mark(("end",))


def _watch_gradients(tracker: Tracker, parameters: list[nn.Parameter]) -> list[Any]:
    """Gradients of an earlier pack of the same step; those of this one are told from activations."""
    fill_gradients(tracker, parameters)
    return [
        parameter.register_post_accumulate_grad_hook(
            lambda parameter: tracker.seed([parameter.grad], "gradients")
        )
        for parameter in parameters
    ]


def _sample(
    tracker: Tracker, config: RunConfig, backbone: Backbone, workload: Workload, stage: Stage
) -> None:
    group_size, num_prompts = sampling_batch(config, stage)
    with scripted_draws(tracker, backbone.end_id, workload.num_draws):
        sample_groups(
            backbone,
            workload.samples(num_prompts),
            group_size=group_size,
            # dense weights are a CPU's way
            sampling=dataclasses.replace(config.sampling, dense_weights="never"),
            seed=("plan",),
        )


@contextlib.contextmanager
def scripted_draws(tracker: Tracker, end_id: int, num_draws: int) -> Iterator[None]:
    """All rows draw the same token, and end together at draw `num_draws`; each draw is a mark."""
    original: Callable[..., Drawn] = rollouts.draw_tokens
    count = 0

    def draw(logits_RV: Tensor, *args: Any, **kwargs: Any) -> Drawn:
        nonlocal count
        count += 1
        tracker.mark(("draw", count))
        drawn = original(logits_RV, *args, **kwargs)
        token = end_id if count >= num_draws else 0
        return drawn._replace(token_R=torch.full(drawn.token_R.shape, token))

    rollouts.draw_tokens = draw
    try:
        yield
    finally:
        rollouts.draw_tokens = original


def _judge(
    config: RunConfig, backbone: Backbone, workload: Workload, memory: Memory, stage: Stage
) -> None:
    if stage == "warmup":
        judged = workload.judged(workload.pairs_per_pack, 1)
    else:
        judged = workload.judged(1, workload.students_per_pack)
    assert memory.discriminator is not None
    discriminator_step(
        backbone,
        memory.discriminator,
        memory.discriminator_optimizer,
        judged,
        config.discriminator,
        learning_rate=1e-9,
        max_grad_norm=1.0,
    )


def _train(
    config: RunConfig, backbone: Backbone, workload: Workload, memory: Memory, stage: Stage
) -> None:
    optimizer = memory.policy_optimizer
    if stage == "sft":
        sft_step(backbone, optimizer, workload.trees(), learning_rate=1e-9, max_grad_norm=1.0)
        return
    settings = {"align": config.align, "rlvr": config.rlvr}[stage]
    groups = workload.groups(settings.group_size)
    num = len(groups[0].rollouts)
    kl_in_loss = stage == "rlvr" and config.rlvr.kl_in == "loss"
    update_policy(
        backbone,
        optimizer,
        groups,
        torch.tensor([1.0 if i % 2 == 0 else -1.0 for i in range(num)]),
        sampling=config.sampling,
        optim=settings.optim,
        learning_rate=1e-9,
        loss=settings.loss,
        num_minibatches=settings.num_minibatches,
        kl_weight=config.rlvr.kl_weight if kl_in_loss else 0.0,
        kl_kind=config.rlvr.kl_kind,
    )
