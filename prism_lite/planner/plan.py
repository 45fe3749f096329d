"""`plan(config)`: what a recipe's stages need of a card, by simulating their steps at full size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from prism_lite.config import RunConfig
from prism_lite.planner.architectures import Architecture, architecture_of
from prism_lite.planner.cards import Card, card_of
from prism_lite.planner.simulate_phase import Simulated, simulate_phase
from prism_lite.planner.tracker import Peak
from prism_lite.planner.workload import PHASES, PhaseName, Stage

GIB = 2**30
SPARE = 0.1  # of the card, for CUDA's own context and the gaps between blocks of memory

Part = tuple[Stage, PhaseName]
Each = Callable[[Sequence[Any], str], Iterable[Any]]  # goes through things and shows what is done


@dataclass(frozen=True)
class StagePlan:
    """One stage's predicted need.

    Attributes:
        stage: its name.
        phases: what its step consists of, each simulated.
        seconds_per_step: predicted lower bound, at the card's stated peaks; None for a CPU.
    """

    stage: Stage
    phases: tuple[Simulated, ...]
    seconds_per_step: float | None

    @property
    def highest(self) -> Simulated:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.peak.total)

    @property
    def peak_gib(self) -> float:
        return self.highest.peak.total / GIB

    @property
    def by_category(self) -> dict[str, float]:
        """GiB by category at the highest moment."""
        return {name: size / GIB for name, size in self.highest.peak.by_category.items()}


@dataclass(frozen=True)
class Plan:
    """Predicted memory of a recipe's stages on a card. Nothing in it was measured on a card.

    Attributes:
        recipe, model: their names.
        card: memory and stated speeds; None for a run on the CPU.
        stages: by name, in order.
    """

    recipe: str
    model: str
    card: Card | None
    stages: dict[Stage, StagePlan]

    @property
    def peak_gib(self) -> float:
        return max(stage.peak_gib for stage in self.stages.values())

    @property
    def room_gib(self) -> float | None:
        """What the stages may use of the card: 90 % of it."""
        return None if self.card is None else self.card.gib * (1 - SPARE)

    @property
    def fits(self) -> bool:
        """Whether every stage leaves 10 % of the card to spare (true without a card)."""
        return self.room_gib is None or self.peak_gib <= self.room_gib

    @property
    def peaks(self) -> dict[Part, Peak]:
        """The highest moment of every phase."""
        return {
            (stage.stage, phase.phase): phase.peak
            for stage in self.stages.values()
            for phase in stage.phases
        }

    @property
    def needs(self) -> dict[Part, float]:
        """GiB of every phase."""
        return {part: peak.total / GIB for part, peak in self.peaks.items()}

    @property
    def failing(self) -> tuple[Part, ...]:
        """Phases that do not fit."""
        room = self.room_gib
        return tuple(part for part, gib in self.needs.items() if room is not None and gib > room)

    def to_json(self) -> dict[str, Any]:
        """{"card_gib", "stages": {stage: {"peak_gib", "by_category": {category: GiB}}}}"""
        return {
            "card_gib": None if self.card is None else self.card.gib,
            "stages": {
                name: {
                    "peak_gib": round(stage.peak_gib, 3),
                    "by_category": {k: round(v, 3) for k, v in stage.by_category.items()},
                }
                for name, stage in self.stages.items()
            },
        }


def in_silence(items: Sequence[Any], _doing: str) -> Iterable[Any]:
    """The `Each` that shows nothing."""
    return items


def plan(
    config: RunConfig,
    *,
    card_gib: float | None = None,
    stages: Sequence[Stage] = tuple(PHASES),
    each: Each = in_silence,
) -> Plan:
    """Simulate every stage of a recipe at full size; no GPU, no download, no training.

    Args:
        config: from `load_recipe`.
        card_gib: the card's memory; default: that of the recipe (model.min_gpu_gib).
        stages: which to plan.
        each: shows how far it is.

    Raises:
        ValueError: the model's sizes are not known here, or the settings contradict one another (a
            prompt with one completion does not fit a pack).
    """
    architecture, card = architecture_of(config), card_for(config, card_gib)
    parts = [(stage, phase) for stage in stages for phase in PHASES[stage]]
    found: dict[Stage, list[Simulated]] = {stage: [] for stage in stages}
    for stage, phase in each(parts, f"simulating {config.recipe}"):
        found[stage].append(_simulated(config, architecture, card, stage, phase))
    planned: dict[Stage, StagePlan] = {
        stage: _stage_plan(stage, phases, card) for stage, phases in found.items()
    }
    return Plan(config.recipe, config.model.name, card, planned)


def card_for(config: RunConfig, card_gib: float | None) -> Card | None:
    """The card to plan for; None where the recipe runs on the CPU."""
    gib = card_gib or config.model.min_gpu_gib
    return card_of(gib) if gib else None


def planned_dtype(config: RunConfig, card: Card | None) -> torch.dtype:
    """The compute type the recipe names; "auto" is float32 on a CPU, else what the card can do."""
    if config.model.compute_dtype != "auto":
        return getattr(torch, config.model.compute_dtype)
    if card is None:
        return torch.float32
    return torch.float16 if card.name == "T4" else torch.bfloat16


def plan_phase(config: RunConfig, card_gib: float | None, stage: Stage, phase: PhaseName) -> float:
    """GiB that one phase alone needs."""
    card = card_for(config, card_gib)
    found = _simulated(config, architecture_of(config), card, stage, phase)
    return found.peak.total / GIB


def _simulated(
    config: RunConfig, architecture: Architecture, card: Card | None, stage: Stage, phase: PhaseName
) -> Simulated:
    dtype = planned_dtype(config, card)
    return simulate_phase(
        config, architecture, dtype, card, stage, phase, has_host=card is not None
    )


def _stage_plan(stage: Stage, phases: Sequence[Simulated], card: Card | None) -> StagePlan:
    seconds = sum(phase.seconds * phase.num_units for phase in phases)
    return StagePlan(stage, tuple(phases), seconds if card else None)


def with_settings(config: RunConfig, **values: Any) -> RunConfig:
    """The settings with some changed: `with_settings(config, sampling__max_rows=16)`."""
    for name, value in values.items():
        config = _replaced(config, name.split("__"), value)
    return config


def _replaced(settings: Any, path: Sequence[str], value: Any) -> Any:
    name, *below = path
    return replace(
        settings, **{name: _replaced(getattr(settings, name), below, value) if below else value}
    )
