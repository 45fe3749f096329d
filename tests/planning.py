"""Phases of the planner run with a mark at each decoder layer, on real and on simulated backbones."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from prism_lite.digits.base_model import base_folder
from prism_lite.models.backbone import load_backbone
from prism_lite.models.families import qwen3_vl as family
from prism_lite.planner.architectures import architecture_of
from prism_lite.planner.cards import card_of
from prism_lite.planner.cpu_memory import separate_cpu_memory
from prism_lite.planner.fake_backbone import build_backbone, faking
from prism_lite.planner.fake_card import simulated_card
from prism_lite.planner.fake_tensors import CARD, Simulation
from prism_lite.planner.simulate_phase import NUM_DRAWS
from prism_lite.planner.steps import run_phase
from prism_lite.planner.tracker import Tracker, tensors_in
from prism_lite.planner.workload import Workload


class Watch(TorchDispatchMode):
    """Mode that shows a tracker every operation on real tensors."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self._tracker = tracker

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        self._tracker.record(func, args, tensors_in(args), outputs)
        return outputs


def real_regions(config, phase, *, separates_cpu=False):
    """The phase on the real tiny model, quantised by bitsandbytes, with real numbers."""
    tracker = _tracker(architecture_of(config))
    with separate_cpu_memory(tracker) if separates_cpu else contextlib.nullcontext():
        backbone = load_backbone(config.model, config.lora, base_folder(config), seed=0)
        _mark_layers(tracker, family.decoder_layers(backbone.core))
        run_phase(
            tracker, Watch(tracker), Workload(backbone, config), phase,
            building=contextlib.nullcontext(), on_card=False, num_draws=NUM_DRAWS,
        )  # fmt: skip
    return tracker.regions


def simulated_regions(config, phase, *, separates_cpu=False):
    """The same simulated, as on the CPU that the real one runs on."""
    architecture = architecture_of(config)
    tracker = _tracker(architecture)
    with separate_cpu_memory(tracker) if separates_cpu else contextlib.nullcontext():
        return _simulate(tracker, config, architecture, torch.float32, phase, on_card=False)


def card_regions(config, architecture, phase, *, card=None, watch=None):
    """The phase simulated on a card, in bfloat16.

    Args:
        card: default: an RTX 3060.
        watch: called with each operation and its tensors.
    """
    card = card or card_of(12)
    tracker = _tracker(architecture, card)
    if watch is not None:
        record = tracker.record

        def watched(function, args, inputs, outputs, workspace=0):
            watch(function, [*inputs, *tensors_in(outputs)])
            record(function, args, inputs, outputs, workspace)

        tracker.record = watched
    with simulated_card(tracker, card):
        return _simulate(tracker, config, architecture, torch.bfloat16, phase, on_card=True)


def _tracker(architecture, card=None):
    return Tracker(vocab_size=architecture.config.text_config.vocab_size, card=card)


def _simulate(tracker, config, architecture, dtype, phase, *, on_card):
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    device = CARD if on_card else torch.device("cpu")
    backbone = build_backbone(config, architecture, dtype, fake_mode, device)
    _mark_layers(tracker, family.decoder_layers(backbone.core))
    mode = Simulation(tracker, fake_mode, on_card=on_card)
    run_phase(
        tracker, mode, Workload(backbone, config), phase,
        building=faking(fake_mode, device), on_card=on_card, num_draws=NUM_DRAWS,
    )  # fmt: skip
    return tracker.regions


def _mark_layers(tracker: Tracker, layers: Any) -> None:
    """Mark each decoder layer's forward, what follows the last, and each layer's backward.

    Region names: ("forward" | "backward", pass, layer) and ("head", pass); a pass is one forward over
    all layers.
    """
    passes = 0
    has_graph: set[int] = set()  # layers whose output had one

    def before(number: int, _layer: Any, _args: Any) -> None:
        nonlocal passes
        if torch._C._current_graph_task_id() >= 0:  # inside a backward
            if number not in has_graph:  # an offloaded layer: its backward begins with this
                tracker.mark(("backward", passes, number))
            return  # checkpointing runs the layer again: a part of its backward
        passes += number == 0
        tracker.mark(("forward", passes, number))

    def after(number: int, _layer: Any, _args: Any, output: Any) -> None:
        if torch._C._current_graph_task_id() >= 0:
            return
        hidden = output[0] if isinstance(output, tuple) else output
        if number == len(layers) - 1:
            tracker.mark(("head", passes))
        if hidden.requires_grad:
            has_graph.add(number)
            key = ("backward", passes, number)
            hidden.register_hook(lambda _grad: tracker.mark(key))

    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(functools.partial(before, number))
        layer.register_forward_hook(functools.partial(after, number))
