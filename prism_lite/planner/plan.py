"""`plan(config)`: what a recipe's stages need of a card, by simulating their steps at full size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console

from prism_lite.config import RunConfig
from prism_lite.console import tracked
from prism_lite.planner.architectures import architecture_of
from prism_lite.planner.cards import Card, card_of
from prism_lite.planner.simulate_phase import Simulated, simulate_phase
from prism_lite.planner.workload import Phase, phases_of
from prism_lite.types import STAGES, Stage

_SPARE = 0.1  # of the card, for CUDA's own context and the gaps between blocks of memory
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """Predicted memory of a recipe's stages on a card. Nothing in it was measured on a card.

    Attributes:
        recipe, model: their names.
        card: memory and stated speeds; None for a run on the CPU.
        phases: what the stages' steps consist of, in order.
    """

    recipe: str
    model: str
    card: Card | None
    phases: dict[Phase, Simulated]

    @property
    def stages(self) -> dict[Stage, Simulated]:
        """Of each stage the phase that needs most."""
        highest: dict[Stage, Simulated] = {}
        for (stage, _), simulated in self.phases.items():
            if stage not in highest or simulated.peak.total > highest[stage].peak.total:
                highest[stage] = simulated
        return highest

    @property
    def peak_gib(self) -> float:
        return max(simulated.peak_gib for simulated in self.phases.values())

    @property
    def room_gib(self) -> float:
        """What the stages may use of the card: 90 % of it; without a card anything."""
        return math.inf if self.card is None else self.card.gib * (1 - _SPARE)

    @property
    def fits(self) -> bool:
        """Whether every stage leaves 10 % of the card to spare."""
        return not self.failing

    @property
    def failing(self) -> tuple[Phase, ...]:
        """Phases that do not fit."""
        needs = {phase: simulated.peak_gib for phase, simulated in self.phases.items()}
        return tuple(phase for phase, gib in needs.items() if gib > self.room_gib)

    def seconds_per_step(self, stage: Stage) -> float:
        """Predicted lower bound, at the card's stated peaks; 0 for a CPU."""
        return sum(
            simulated.seconds * simulated.num_repeats
            for phase, simulated in self.phases.items()
            if phase.stage == stage
        )

    def to_json(self) -> dict[str, Any]:
        """Return {"card_gib", "stages": {stage: {"peak_gib", "by_category": {category: GiB}}}}."""
        return {
            "card_gib": None if self.card is None else self.card.gib,
            "stages": {
                stage: {
                    "peak_gib": round(simulated.peak_gib, 3),
                    "by_category": {k: round(v, 3) for k, v in simulated.by_category.items()},
                }
                for stage, simulated in self.stages.items()
            },
        }


def plan(
    config: RunConfig, *, card_gib: float | None = None, stages: Sequence[Stage] = STAGES
) -> Plan:
    """Simulate every stage of a recipe at full size: no GPU, no download, no training.

    Args:
        config: from `load_recipe`.
        card_gib: the card's memory; default: that of the recipe (model.min_gpu_gib).
        stages: which to plan.

    Raises:
        ValueError: the model's sizes are not known here, or the settings contradict one another (a
            prompt with one completion does not fit a pack).
    """
    architecture, card = architecture_of(config), card_for(config, card_gib)
    phases = [phase for phase in phases_of(config) if phase.stage in stages]
    simulated = {
        phase: simulate_phase(config, architecture, card, phase)
        for phase in show_progress(phases, f"simulating {config.recipe}")
    }
    return Plan(config.recipe, config.model.name, card, simulated)


def card_for(config: RunConfig, card_gib: float | None) -> Card | None:
    """Return the card to plan for; None where the recipe runs on the CPU."""
    gib = card_gib or config.model.min_gpu_gib
    return card_of(gib) if gib else None


def phase_gib(config: RunConfig, card: Card, phase: Phase) -> float:
    """Return the GiB that one phase alone needs."""
    return simulate_phase(config, architecture_of(config), card, phase).peak_gib


def show_progress(items: Sequence[T], description: str) -> Iterable[T]:
    """Iterate; on a terminal a bar shows how far it is."""
    console = Console(stderr=True)
    return tracked(items, description, console=console)
