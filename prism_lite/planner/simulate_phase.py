"""Simulate one phase of a stage at full size: build the stand-in, run the real step, read the tracker."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from prism_lite.config import RunConfig
from prism_lite.models.backbone import REFERENCE, TRUNK, Backbone
from prism_lite.planner.architectures import Architecture
from prism_lite.planner.cards import Card
from prism_lite.planner.fake_backbone import build_backbone, faking
from prism_lite.planner.fake_card import simulated_card
from prism_lite.planner.fake_tensors import CARD, Simulation
from prism_lite.planner.steps import run_phase
from prism_lite.planner.tracker import Key, Peak, Tracker
from prism_lite.planner.workload import Phase, Workload
from prism_lite.sampling.decoder import dense_bytes

GIB = 2**30
NUM_DRAWS = 4  # tokens decoded in simulation: the others need as much as the third
# Pairs of a panel that are scored in simulation: each of the others is a pack that needs as much, and keeps
# some megabytes, and all is less than the discriminator's own step needs.
_NUM_PAIRS = 3
_LIBRARY_BYTES = 2**26  # workspaces of cuBLAS and cuBLASLt, which no operation returns


@dataclass(frozen=True)
class Cost:
    """Work on the card. Without a card all is 0.

    Attributes:
        busy_s: seconds of arithmetic and memory traffic at the card's sustained speeds.
        num_launches: operations that the host issues.
    """

    busy_s: float = 0.0
    num_launches: int = 0


@dataclass(frozen=True)
class Simulated:
    """What one phase needs.

    Attributes:
        peak: bytes by category at the highest moment.
        reserved_bytes: what torch's allocator reserves for the phase's tensors, and libraries beside it.
        cost: of the phase's work; where it samples, until the first token is drawn.
        token_cost: of a token of all rows, without attention to their keys; None where nothing is sampled.
        pack_tokens: tokens of the pack that `cost` is of.
        step_tokens: those of all packs of a step at full length.
        num_rows: rows decoded side by side.
        prompt_tokens: of the longest prompt.
        key_bytes: keys and values of a token in all layers.
        is_dense: sampling holds dequantised, merged weights.
    """

    phase: Phase
    peak: Peak
    reserved_bytes: int = 0
    cost: Cost = Cost()
    token_cost: Cost | None = None
    pack_tokens: int = 1
    step_tokens: int = 1
    num_rows: int = 0
    prompt_tokens: int = 0
    key_bytes: int = 0
    is_dense: bool = False

    @property
    def peak_gib(self) -> float:
        """Peak of all tensors."""
        return self.peak.total / GIB

    @property
    def reserved_gib(self) -> float:
        """Most that is reserved for them; without a card, the peak itself."""
        return max(self.reserved_bytes, self.peak.total) / GIB

    @property
    def off_card_gib(self) -> float:
        """What waits in the CPU's memory at the highest moment."""
        return self.peak.off_card / GIB

    @property
    def by_category(self) -> dict[str, float]:
        """GiB by category at the highest moment."""
        return {name: num_bytes / GIB for name, num_bytes in self.peak.by_category.items()}


class StandIns:
    """Stand-ins for a recipe's backbone, one for all its phases where that is possible.

    Where parts of the model wait on the CPU, each phase's tracker must see how they come there: it has a
    stand-in of its own.
    """

    def __init__(self, config: RunConfig, architecture: Architecture, card: Card | None) -> None:
        self._config, self._architecture = config, architecture
        self.fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.device = torch.device("cpu") if card is None else CARD
        self._dtype = _compute_dtype(config, card)
        self._shared: Backbone | None = None

    @contextlib.contextmanager
    def backbone(self) -> Iterator[Backbone]:
        """Return a backbone that is as after loading."""
        model = self._config.model
        if self._shared is not None:
            backbone = self._shared
        else:
            backbone = build_backbone(
                self._config, self._architecture, self._dtype, self.fake_mode, self.device
            )
        yield backbone
        if model.vision_on_cpu or model.embeddings_on_cpu:
            return
        for adapter in (TRUNK, REFERENCE):
            backbone.drop_adapter(adapter)
        for parameter in backbone.policy_parameters():
            parameter.grad = None
        backbone.clear_caches()
        self._shared = backbone


def simulate_phase(
    config: RunConfig,
    architecture: Architecture,
    card: Card | None,
    phase: Phase,
    stand_ins: StandIns | None = None,
) -> Simulated:
    """Simulate a phase; of a completion the first tokens are decoded.

    Args:
        stand_ins: of the same recipe and card, for its other phases too.
    """
    stand_ins = stand_ins or StandIns(config, architecture, card)
    text = architecture.config.text_config
    tracker = Tracker(vocab_size=text.vocab_size, card=card)
    with contextlib.ExitStack() as stack:
        if card is not None:
            stack.enter_context(simulated_card(tracker, card))
        backbone = stack.enter_context(stand_ins.backbone())
        workload = Workload(backbone, config)
        num_rows = run_phase(
            tracker,
            Simulation(tracker, stand_ins.fake_mode, on_card=card is not None),
            workload,
            phase,
            building=faking(stand_ins.fake_mode, stand_ins.device),
            on_card=card is not None,
            num_draws=min(NUM_DRAWS, config.sampling.max_completion_tokens),
            num_pairs=_NUM_PAIRS,
        )
        dense = dense_bytes(backbone.core)
    drawing = [region for key, region in tracker.regions.items() if key[0] == "draw"]
    others = [region for key, region in tracker.regions.items() if key[0] in _COUNTED]
    is_dense = False
    if drawing:
        held = tracker.regions["draw", 1].by_category["weights"]
        before = tracker.regions[("start",)].by_category["weights"]
        is_dense = held - before > dense / 2
    return Simulated(
        phase,
        tracker.peak,
        reserved_bytes=tracker.reserved_bytes + (_LIBRARY_BYTES if card else 0),
        cost=_cost(others),
        token_cost=_token_cost(tracker.regions) if drawing else None,
        pack_tokens=workload.pack_tokens(phase),
        step_tokens=workload.step_tokens(phase),
        num_rows=num_rows,
        prompt_tokens=workload.prompt_tokens,
        key_bytes=2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
        * backbone.precision.compute_dtype.itemsize,
        is_dense=is_dense,
    )  # fmt: skip


_COUNTED = (
    "sample",
    "judge",
    "train",
    "optimizer",
    "panel",
    "evaluate",
)  # regions of a phase's work


def _compute_dtype(config: RunConfig, card: Card | None) -> torch.dtype:
    """Return the recipe's compute type; "auto" is float32 on a CPU, else what the card can do."""
    if config.model.compute_dtype != "auto":
        return getattr(torch, config.model.compute_dtype)
    if card is None:
        return torch.float32
    return torch.bfloat16 if card.capability >= (8, 0) else torch.float16


def _cost(regions: list[Peak]) -> Cost:
    return Cost(
        sum(region.busy_s + region.attention_s for region in regions),
        sum(region.num_launches for region in regions),
    )


def _token_cost(regions: dict[Key, Peak]) -> Cost:
    """Return the cost of one token of all rows.

    A draw's region reaches to the next draw: the pass over all layers that follows it is in it. The rows'
    buffers have their full length from the start, so later draws need no more memory than the third.
    """
    numbers = sorted(key[1] for key in regions if key[0] == "draw")[:-1]  # nothing follows the last
    second, third = (
        regions["draw", number] for number in (numbers[-2:-1] or numbers)[:1] + numbers[-1:]
    )
    assert second.total == third.total, "memory grows while decoding: simulate more draws"
    return Cost(third.busy_s, third.num_launches)
