"""One phase of a stage's step with all that is in memory around it, on a simulated or a real backbone.

The steps are the stages' own. Around them are what earlier steps left: adapters, optimizer states,
gradients of earlier packs, cached pictures and prompts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from prism_lite.config import OptimConfig
from prism_lite.discriminator.model import Discriminator
from prism_lite.discriminator.probes import heldout_pairs
from prism_lite.discriminator.step import discriminator_step
from prism_lite.models.backbone import REFERENCE, TRUNK, Backbone
from prism_lite.models.families import qwen3_vl as family
from prism_lite.models.optim import Optimizer, make_optimizer, optimizer_name, optimizer_step
from prism_lite.models.vision import PictureFeatures
from prism_lite.planner.fake_backbone import tensors_of
from prism_lite.planner.tracker import Tracker
from prism_lite.planner.workload import Phase, Workload
from prism_lite.policy.step import update_policy
from prism_lite.sampling import rollouts, token_step
from prism_lite.sampling.draw import Drawn
from prism_lite.sampling.many_prompts import rows_without_training
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.stages.sft import sft_step
from prism_lite.types import Stage

_LEARNING_RATE = 1e-9  # any but 0: the memory of a step does not depend on its size


@dataclass(frozen=True, eq=False)
class _Memory:
    """What a stage keeps in memory in addition to the backbone."""

    policy_optimizer: Optimizer | None
    discriminator: Discriminator | None
    discriminator_optimizer: Optimizer | None


def run_phase(
    tracker: Tracker,
    mode: TorchDispatchMode,
    workload: Workload,
    phase: Phase,
    *,
    building: contextlib.AbstractContextManager[Any],
    on_card: bool,
    num_draws: int,
    num_pairs: int | None = None,
) -> int:
    """Run one phase of a stage's step as it is after earlier steps.

    Args:
        mode: shows the tracker every operation; on a simulated backbone it also simulates them.
        building: context in which parameters are made (`fake_backbone.faking`, or an empty one).
        on_card: whether the optimizers are those of a card.
        num_draws: tokens that are sampled before all rows end.
        num_pairs: pairs that the panel scores in one call; default: as many as a run.

    Returns:
        Rows that were decoded side by side, 0 where nothing is sampled.
    """
    num_rows = 0
    memory = _build_memory(workload, phase.stage, building, on_card=on_card)
    for category, tensors in tensors_of(workload.backbone).items():
        tracker.seed(tensors, category)
    workload.prompts(1)  # a run tokenises before its first step
    with mode, contextlib.ExitStack() as hooks:
        _take_first_step(tracker, workload.backbone, memory)
        earlier = _fill_caches(tracker, workload, memory, phase)
        handle = register_optimizer_step_pre_hook(lambda *_: tracker.mark(("optimizer",)))
        hooks.callback(handle.remove)
        tracker.mark((phase.work,))
        if phase.work in ("sample", "panel", "evaluate"):
            num_rows = _sample(tracker, workload, phase, num_draws)
            if phase.work == "panel":
                assert memory.discriminator is not None
                tracker.mark(("scoring",))
                pairs = workload.panel()[:num_pairs]
                heldout_pairs(workload.backbone, memory.discriminator, pairs)
            if phase.work == "evaluate":
                tracker.mark(("saving",))
                workload.backbone.adapter_state()
        elif phase.work == "judge":
            assert memory.discriminator is not None
            _watch_gradients(tracker, list(memory.discriminator.parameters()), hooks)
            _judge(workload, memory, phase)
        else:
            _watch_gradients(tracker, workload.backbone.policy_parameters(), hooks)
            _train(workload, memory, phase)
        tracker.mark(("end",))
        del earlier
    return num_rows


def _build_memory(
    workload: Workload,
    stage: Stage,
    building: contextlib.AbstractContextManager[Any],
    *,
    on_card: bool,
) -> _Memory:
    config, backbone, device = workload.config, workload.backbone, workload.backbone.device
    core: Any = backbone.core
    discriminator = discriminator_optimizer = policy_optimizer = None
    with building:
        core.to("cpu")  # a simulated card copies only where the simulation sees it
        if stage in ("warmup", "align") or (stage == "rlvr" and config.rlvr.game != "off"):
            if config.discriminator.trunk == "sft":
                backbone.freeze_copy(TRUNK)
            text = backbone.core.config.text_config
            discriminator = Discriminator(
                config.discriminator,
                num_layers=text.num_hidden_layers,
                hidden_size=text.hidden_size,
                seed=0,
            ).to(device)
        if stage == "rlvr" and config.rlvr.kl_weight > 0 and config.rlvr.kl_reference == "start":
            backbone.freeze_copy(REFERENCE)
        core.to(device)
    if discriminator is not None:
        optim = config.warmup.optim if stage == "warmup" else config.discriminator.optim
        discriminator_optimizer = _optimizer(list(discriminator.parameters()), optim, on_card)
    if stage != "warmup":
        optim = getattr(config, stage).optim
        policy_optimizer = _optimizer(backbone.policy_parameters(), optim, on_card)
    return _Memory(policy_optimizer, discriminator, discriminator_optimizer)


def _optimizer(parameters: list[nn.Parameter], optim: OptimConfig, on_card: bool) -> Optimizer:
    """Make the optimizer that a run has on CUDA or on a CPU; on CUDA torch's AdamW is a foreach one."""
    name: Any = optimizer_name(optim, "cuda" if on_card else "cpu")
    optimizer = make_optimizer(parameters, dataclasses.replace(optim, name=name))
    for group in optimizer.inner.param_groups:
        if on_card and "foreach" in group:
            group["foreach"] = True
    return optimizer


def _take_first_step(tracker: Tracker, backbone: Backbone, memory: _Memory) -> None:
    """Step the optimizers, so that their states exist."""
    discriminator_parameters: list[nn.Parameter] = []
    if memory.discriminator is not None:
        discriminator_parameters = list(memory.discriminator.parameters())
        tracker.seed(discriminator_parameters, "adapters")
    for optimizer, parameters in (
        (memory.policy_optimizer, backbone.policy_parameters()),
        (memory.discriminator_optimizer, discriminator_parameters),
    ):
        if optimizer is None:
            continue
        _fill_gradients(tracker, parameters)
        optimizer_step(optimizer, parameters, _LEARNING_RATE, 1.0)
        states = [value for state in optimizer.inner.state.values() for value in state.values()]
        tracker.seed([state for state in states if isinstance(state, Tensor)], "optimizer")


def _fill_gradients(tracker: Tracker, parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
        tracker.seed([parameter.grad], "gradients")


def _watch_gradients(
    tracker: Tracker, parameters: list[nn.Parameter], hooks: contextlib.ExitStack
) -> None:
    """Fill the gradients of an earlier pack of the same step; count this pack's as gradients too."""
    _fill_gradients(tracker, parameters)
    for parameter in parameters:
        handle = parameter.register_post_accumulate_grad_hook(
            lambda parameter: tracker.seed([parameter.grad], "gradients")
        )
        hooks.callback(handle.remove)


def _fill_caches(
    tracker: Tracker, workload: Workload, memory: _Memory, phase: Phase
) -> list[Tensor]:
    """Fill the caches as earlier steps left them.

    The features of this phase's own pictures are in the cache where sampling came before it. Those of
    other pictures, and the discriminator's states of earlier prompts, are only accounted for.

    Returns:
        A tensor for each kind that is only accounted for: keep them while the phase runs.
    """
    backbone, prompt = workload.backbone, workload.prompts(1)[0]
    vision, text = backbone.core.config.vision_config, backbone.core.config.text_config
    dtype = family.vision_tower(backbone.core).patch_embed.proj.weight.dtype
    # the merged features, and a level for each layer that feeds DeepStack
    num_levels = 1 + len(vision.deepstack_visual_indexes)
    shape = (num_levels, int(prompt.is_picture_P.sum()), text.hidden_size)
    num_own = 0
    if phase.stage != "sft" and phase.work in ("judge", "train"):
        num_own = workload.groups_per_pack if phase.stage == "warmup" else 1
    for own_prompt in workload.prompts(num_own):
        merged, *deepstack = levels = [
            torch.zeros(shape[1:], dtype=dtype, device=backbone.device) for _ in range(shape[0])
        ]
        tracker.seed(levels, "pictures")
        backbone.vision.put(own_prompt.pictures[0], PictureFeatures(merged, tuple(deepstack)))
    limit_bytes = int(workload.config.model.picture_cache_gib * 2**30)
    max_pictures = limit_bytes // (math.prod(shape) * dtype.itemsize)
    num_others = max(0, min(workload.num_cached_pictures, max_pictures) - num_own)
    others = torch.empty((num_others, *shape), dtype=dtype, device=backbone.device)
    tracker.seed([others], "pictures")
    if memory.discriminator is None:
        return [others]
    # The phase adds the keys and values of its own prompts itself; the cache drops others for them.
    own_bytes = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    own_bytes *= backbone.precision.compute_dtype.itemsize * num_own * len(prompt)
    num_bytes = max(0, memory.discriminator.prompt_cache.max_bytes - own_bytes)
    states = torch.empty(num_bytes, dtype=torch.uint8, device=backbone.device)
    tracker.seed([states], "kv_cache")
    return [others, states]


def _sample(tracker: Tracker, workload: Workload, phase: Phase, num_draws: int) -> int:
    """Sample one batch of rows; return their number."""
    sampling = workload.config.sampling
    if phase.work != "sample" or phase.stage == "warmup":
        group_size, _ = workload.sampled(phase)
        rows = rows_without_training(workload.backbone, group_size, sampling)
        sampling = dataclasses.replace(sampling, max_rows=rows)
    if tracker.free_bytes is None:  # a CPU's free memory is not what is planned for
        sampling = dataclasses.replace(sampling, dense_weights="never")
    group_size, num_prompts = workload.sampling_batch(phase, sampling.max_rows)
    with _scripted_draws(tracker, workload.backbone.end_id, num_draws):
        sample_groups(
            workload.backbone,
            workload.samples(num_prompts),
            group_size=group_size,
            sampling=sampling,
            seed=("plan",),
        )
    return group_size * num_prompts


@contextlib.contextmanager
def _scripted_draws(tracker: Tracker, end_id: int, num_draws: int) -> Iterator[None]:
    """Let all rows draw the same token, and end together at draw `num_draws`; mark each draw.

    Steps are taken one by one, with a check after each: no driver is there to record them.
    """
    draw_tokens = token_step.draw_tokens
    count = 0

    def draw(logits_RV: Tensor, *args: Any, **kwargs: Any) -> Drawn:
        nonlocal count
        count += 1
        tracker.mark(("draw", count))
        drawn = draw_tokens(logits_RV, *args, **kwargs)
        token = end_id if count >= num_draws else 0
        # a tensor with values, which the check for finished rows reads
        token_R = torch.full(drawn.token_R.shape, token, device=drawn.token_R.device)
        return drawn._replace(token_R=token_R)

    with (
        mock.patch.object(token_step, "draw_tokens", draw),
        mock.patch.object(token_step, "_may_record", lambda *_: False),
        mock.patch.object(rollouts, "check_schedule", lambda _device: (1, 1)),
    ):
        yield


def _judge(workload: Workload, memory: _Memory, phase: Phase) -> None:
    assert memory.discriminator is not None and memory.discriminator_optimizer is not None
    discriminator_step(
        workload.backbone,
        memory.discriminator,
        memory.discriminator_optimizer,
        workload.judged(phase.stage),
        workload.config.discriminator,
        learning_rate=_LEARNING_RATE,
        max_grad_norm=1.0,
    )


def _train(workload: Workload, memory: _Memory, phase: Phase) -> None:
    config, backbone, optimizer = workload.config, workload.backbone, memory.policy_optimizer
    assert optimizer is not None
    if phase.stage == "sft":
        trees = workload.trees()
        sft_step(backbone, optimizer, trees, learning_rate=_LEARNING_RATE, max_grad_norm=1.0)
        return
    settings = config.rlvr if phase.stage == "rlvr" else config.align
    kl_in_loss = phase.stage == "rlvr" and config.rlvr.kl_in == "loss"
    groups = workload.groups(settings.group_size)
    # not 0: a group whose advantages are all 0 is not forwarded
    advantage_R = torch.tensor([(-1.0) ** number for number in range(len(groups[0].rollouts))])
    update_policy(
        backbone,
        optimizer,
        groups,
        advantage_R,
        sampling=config.sampling,
        optim=settings.optim,
        learning_rate=_LEARNING_RATE,
        loss=settings.loss,
        num_minibatches=settings.num_minibatches,
        kl_weight=config.rlvr.kl_weight if kl_in_loss else 0.0,
        kl_kind=config.rlvr.kl_kind,
    )
