"""What lies in memory when a stage's later steps begin: adapters, optimizer states, gradients, caches."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prism_lite.config import OptimConfig, RunConfig
from prism_lite.discriminator.model import Discriminator
from prism_lite.models.backbone import REFERENCE, TRUNK, Backbone
from prism_lite.models.optim import make_optimizer, optimizer_name, optimizer_step
from prism_lite.models.vision import PictureFeatures
from prism_lite.planner.tracker import Tracker
from prism_lite.planner.workload import PhaseName, Stage, Workload


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
        on_card: "auto" is what it is on CUDA, and AdamW goes over all parameters at once, as torch lets
            it there.
    """
    discriminator = discriminator_optimizer = policy_optimizer = None
    with made_in:
        if stage in ("warmup", "align"):
            if config.discriminator.trunk == "sft":
                backbone.freeze_copy(TRUNK)
            text = backbone.core.config.text_config
            discriminator = Discriminator(
                config.discriminator,
                num_layers=judged_layers or text.num_hidden_layers,
                hidden_size=text.hidden_size,
                seed=0,
            ).to(backbone.device)
        if stage == "rlvr" and config.rlvr.kl_weight > 0 and config.rlvr.kl_reference == "start":
            backbone.freeze_copy(REFERENCE)
    if discriminator is not None:
        optim = config.warmup.optim if stage == "warmup" else config.discriminator.optim
        discriminator_optimizer = make_optimizer(
            list(discriminator.parameters()), _decided(optim, on_card)
        )
    if stage != "warmup":
        optim = _decided(_policy_optim(config, stage), on_card)
        policy_optimizer = make_optimizer(backbone.policy_parameters(), optim)
    if on_card:
        for optimizer in filter(None, (policy_optimizer, discriminator_optimizer)):
            for group in optimizer.inner.param_groups:
                if "foreach" in group:
                    group["foreach"] = True
    return Memory(policy_optimizer, discriminator, discriminator_optimizer)


def _decided(optim: OptimConfig, on_card: bool) -> Any:
    return dataclasses.replace(optim, name=optimizer_name(optim, "cuda" if on_card else "cpu"))


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
        fill_gradients(tracker, parameters)
        optimizer_step(optimizer, parameters, 1e-9, 1.0)
        tracker.seed(_states_of(optimizer), "optimizer")


def fill_gradients(tracker: Tracker, parameters: list[nn.Parameter]) -> None:
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
    dtype = backbone.core.model.visual.patch_embed.proj.weight.dtype
    shape = (1 + len(vision.deepstack_visual_indexes), num_tokens, text.hidden_size)
    is_sampled = stage != "sft" and phase != "sample"
    num_own = 0 if not is_sampled else workload.pairs_per_pack if stage == "warmup" else 1
    for own in workload.prompts(num_own):
        levels = [torch.zeros(shape[1:], dtype=dtype) for _ in range(shape[0])]
        tracker.seed(levels, "pictures")
        features = PictureFeatures(levels[0], tuple(levels[1:]))
        backbone.vision.put(own.pictures[0], features)
    size = math.prod(shape) * dtype.itemsize
    most = int(workload.config.model.picture_cache_gib * 2**30) // size
    num_others = max(0, min(workload.num_cached_pictures, most) - num_own)
    room = torch.empty((num_others, *shape), dtype=dtype)
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
    size *= backbone.precision.compute_dtype.itemsize
    return num_prompts * len(workload.prompts(1)[0]) * size
