"""The real steps of each stage, with what lies in memory around them.

`run_phase` is given a backbone (simulated, or real in the test that compares the two), brings memory to
the state in which the stage's later steps find it (adapters, optimizer states, gradients of an earlier
pack, cached pictures), and calls the stage's own step function.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from prism_lite import rollouts
from prism_lite.config import OptimConfig, RunConfig
from prism_lite.game import discriminator_step
from prism_lite.losses import PolicyLossConfig
from prism_lite.models.backbone import REFERENCE, TRUNK, Backbone
from prism_lite.models.discriminator import Discriminator
from prism_lite.models.vision import PictureFeatures
from prism_lite.optim import make_optimizer, optimizer_step
from prism_lite.planner.tracker import Tracker, watch_layers, watch_tower
from prism_lite.planner.workload import PhaseName, Stage, Workload, sampling_batch
from prism_lite.policy import update_policy
from prism_lite.rollouts import sample_groups
from prism_lite.sampling import Drawn
from prism_lite.stages.rlvr import policy_loss_config
from prism_lite.stages.sft import sft_step


@dataclass(frozen=True, eq=False)
class Memory:
    """What a stage keeps in memory beside the backbone."""

    policy_optimizer: Any
    discriminator: Discriminator | None
    discriminator_optimizer: Any


def build_memory(
    config: RunConfig,
    backbone: Backbone,
    stage: Stage,
    made_in: contextlib.AbstractContextManager[Any],
    *,
    on_card: bool,
    judged_layers: int | None = None,
) -> Memory:
    """Adapters, discriminator and optimizers of a stage.

    Args:
        made_in: context in which parameters are made (`stand_in.faking`, or none for real ones).
        judged_layers: decoder layers of the backbone that the discriminator is for, where it only lies
            in memory beside a shallower one.
        on_card: AdamW goes over all parameters at once, as torch lets it on CUDA.
    """
    discriminator = discriminator_optimizer = policy_optimizer = None
    with made_in:
        if stage in ("warmup", "align"):
            if config.discriminator.trunk == "sft":
                backbone.freeze_copy(TRUNK)
            judged = backbone if judged_layers is None else _deeper(backbone, judged_layers)
            discriminator = Discriminator(judged, config.discriminator, seed=0)
        if stage == "rlvr" and config.rlvr.kl_weight > 0 and config.rlvr.kl_reference == "start":
            backbone.freeze_copy(REFERENCE)
    if discriminator is not None:
        optim = config.warmup.optim if stage == "warmup" else config.discriminator.optim
        discriminator_optimizer = make_optimizer(list(discriminator.parameters()), optim)
    if stage != "warmup":
        policy_optimizer = make_optimizer(
            backbone.policy_parameters(), _policy_optim(config, stage)
        )
    if on_card:
        for optimizer in filter(None, (policy_optimizer, discriminator_optimizer)):
            for group in optimizer.inner.param_groups:
                if "foreach" in group:
                    group["foreach"] = True
    return Memory(policy_optimizer, discriminator, discriminator_optimizer)


def _deeper(backbone: Backbone, num_layers: int) -> Any:
    """As much of a backbone with more layers as a discriminator is built from."""
    sizes = copy.deepcopy(backbone.core.config)
    sizes.text_config.num_hidden_layers = num_layers
    return SimpleNamespace(core=SimpleNamespace(config=sizes), device=backbone.device)


def _policy_optim(config: RunConfig, stage: Stage) -> OptimConfig:
    return {"sft": config.sft, "align": config.align, "rlvr": config.rlvr}[stage].optim


def settle(tracker: Tracker, backbone: Backbone, memory: Memory) -> None:
    """Take a first optimizer step, so that the states are there; leave gradients of an earlier pack."""
    discriminator_parameters: list[nn.Parameter] = []
    if memory.discriminator is not None:
        discriminator_parameters = list(memory.discriminator.parameters())
        tracker.seed(discriminator_parameters, "adapters")
    trained = [
        (memory.policy_optimizer, backbone.policy_parameters()),
        (memory.discriminator_optimizer, discriminator_parameters),
    ]
    for optimizer, parameters in trained:
        if optimizer is None:
            continue
        _fill_gradients(tracker, parameters)
        optimizer_step(optimizer, parameters, 1e-9, 1.0)
        tracker.seed(_states_of(optimizer), "optimizer")


def _fill_gradients(tracker: Tracker, parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
        tracker.seed([parameter.grad], "gradients")


def _states_of(optimizer: Any) -> list[Tensor]:
    return [
        value
        for state in optimizer.inner.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]


def fill_caches(
    tracker: Tracker,
    backbone: Backbone,
    workload: Workload,
    memory: Memory,
    stage: Stage,
    phase: PhaseName,
) -> list[Tensor]:
    """Features of earlier steps' pictures, and of this phase's own where sampling came before it;
    and the discriminator's states of earlier prompts.

    Returns:
        The room that the earlier ones take, a tensor for each kind: keep it while the phase runs.
    """
    prompt = workload.prompts(1)[0]
    num_tokens = int(prompt.is_picture_P.sum())
    vision, text = backbone.core.config.vision_config, backbone.core.config.text_config
    shape = (1 + len(vision.deepstack_visual_indexes), num_tokens, text.hidden_size)
    is_sampled = stage != "sft" and phase != "sample"
    num_own = 0 if not is_sampled else workload.pairs_per_pack if stage == "warmup" else 1
    for own in workload.prompts(num_own):
        levels = [torch.zeros(shape[1:], dtype=backbone.core.dtype) for _ in range(shape[0])]
        tracker.seed(levels, "pictures")
        features = PictureFeatures(levels[0], tuple(levels[1:]))
        backbone.vision.put(own.pictures[0], features)
    size = math.prod(shape) * backbone.core.dtype.itemsize
    most = int(workload.config.model.picture_cache_gib * 2**30) // size
    num_others = max(0, min(workload.num_cached_pictures, most) - num_own)
    room = torch.empty((num_others, *shape), dtype=backbone.core.dtype)
    tracker.seed([room], "pictures")
    if memory.discriminator is None:
        return [room]
    # What this phase adds itself is not in it: it makes room for its own.
    states = torch.empty(
        max(
            0,
            memory.discriminator.prompt_cache.max_bytes - _state_bytes(backbone, workload, num_own),
        ),
        dtype=torch.uint8,
    )
    tracker.seed([states], "kv_cache")
    return [room, states]


def _state_bytes(backbone: Backbone, workload: Workload, num_prompts: int) -> int:
    """Keys and values of so many prompts."""
    text = backbone.core.config.text_config
    size = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    return num_prompts * len(workload.prompts(1)[0]) * size * backbone.core.dtype.itemsize


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
    handles = watch_layers(tracker, backbone.core.model.language_model.layers)
    handles.append(register_optimizer_step_pre_hook(lambda *_: tracker.mark(("optimizer",))))
    handles += watch_tower(tracker, backbone.core.model.visual)
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
    _fill_gradients(tracker, parameters)
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
            system_prompt="",
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
    loss, num_minibatches = PolicyLossConfig(), 1
    if stage == "rlvr":
        loss = policy_loss_config(config.rlvr, config.sampling.max_completion_tokens)
        num_minibatches = config.rlvr.num_minibatches
    update_policy(
        backbone,
        optimizer,
        groups,
        torch.tensor([1.0 if i % 2 == 0 else -1.0 for i in range(num)]),
        system_prompt="",
        temperature=config.sampling.temperature,
        optim=settings.optim,
        learning_rate=1e-9,
        loss=loss,
        num_minibatches=num_minibatches,
    )
