"""`plan(config)`: memory and hours that a recipe needs on a card, by simulating its steps at full size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console

from prism_lite.config import RunConfig
from prism_lite.console import tracked
from prism_lite.planner.architectures import architecture_of
from prism_lite.planner.cards import Card, card_of
from prism_lite.planner.hours import Hours, predict_hours
from prism_lite.planner.simulate_phase import Simulated, StandIns, simulate_phase
from prism_lite.planner.workload import Phase, phases_of
from prism_lite.types import STAGES, Stage

_SPARE = (
    0.1  # of the card, for CUDA's own context (0.4 to 0.6 GiB) and what a simulation cannot see
)
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """Predicted memory and hours of a recipe's stages on a card. No memory in it was measured.

    Attributes:
        recipe, model: their names.
        card: memory and speeds; None for a run on the CPU.
        phases: what the stages consist of, in order.
        hours: None for a run on the CPU, or if not all stages are planned.
    """

    recipe: str
    model: str
    card: Card | None
    phases: dict[Phase, Simulated]
    hours: Hours | None = None

    @property
    def stages(self) -> dict[Stage, Simulated]:
        """Of each stage the phase that needs most."""
        highest: dict[Stage, Simulated] = {}
        for (stage, _), simulated in self.phases.items():
            if stage not in highest or simulated.reserved_gib > highest[stage].reserved_gib:
                highest[stage] = simulated
        return highest

    @property
    def peak_gib(self) -> float:
        """Most that is reserved on the card; without one the highest peak of tensors."""
        return max(simulated.reserved_gib for simulated in self.phases.values())

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
        needs = {phase: simulated.reserved_gib for phase, simulated in self.phases.items()}
        return tuple(phase for phase, gib in needs.items() if gib > self.room_gib)

    def to_json(self) -> dict[str, Any]:
        """Return {"card_gib", "stages": {stage: {"peak_gib", "by_category": {category: GiB}}}}.

        With a card a stage has "reserved_gib" too, the least and the most. With hours it has "hours" and
        "step_s", and beside the stages are "hours" (in all), "evaluation_hours", "panel_hours" (in those of
        the stages), "colab_sessions" and "decoding".
        """
        stages = {stage: self._stage_json(stage, highest) for stage, highest in self.stages.items()}
        figures: dict[str, Any] = {"card_gib": None if self.card is None else self.card.gib}
        if self.hours is not None:
            figures |= {
                "hours": round(self.hours.total, 2),
                "evaluation_hours": round(self.hours.evaluation, 2),
                "panel_hours": round(self.hours.panels, 2),
                "colab_sessions": self.hours.num_sessions,
                "decoding": self.hours.decoding,
            }
        return figures | {"stages": stages}

    def _stage_json(self, stage: Stage, highest: Simulated) -> dict[str, Any]:
        figures: dict[str, Any] = {
            "peak_gib": round(highest.peak_gib, 3),
            "by_category": {k: round(v, 3) for k, v in highest.by_category.items()},
        }
        if self.card is not None:
            figures["reserved_gib"] = [round(highest.peak_gib, 3), round(highest.reserved_gib, 3)]
        if self.hours is not None:
            figures["hours"] = round(self.hours.stages[stage], 2)
            figures["step_s"] = round(self.hours.step_s[stage], 3)
        return figures


def plan(
    config: RunConfig,
    *,
    card_gib: float | None = None,
    stages: Sequence[Stage] = STAGES,
    record: Mapping[str, Any] | None = None,
) -> Plan:
    """Simulate every stage of a recipe at full size: no GPU, no download, no training.

    Args:
        config: from `load_recipe`.
        card_gib: the card's memory; default: that of the recipe (model.min_gpu_gib).
        stages: which to plan.
        record: of `gpu-check` on the card, to calibrate the hours.

    Raises:
        ValueError: the model's sizes are not known here, or the settings contradict one another (a
            prompt with one completion does not fit a pack).
    """
    architecture, card = architecture_of(config), card_for(config, card_gib)
    phases = [phase for phase in phases_of(config) if phase.stage in stages]
    stand_ins = StandIns(config, architecture, card)
    simulated = {
        phase: simulate_phase(config, architecture, card, phase, stand_ins)
        for phase in show_progress(phases, f"simulating {config.recipe}")
    }
    hours = None
    if card is not None and set(stages) == set(STAGES):
        hours = predict_hours(config, card, simulated, record)
    return Plan(config.recipe, config.model.name, card, simulated, hours)


def card_for(config: RunConfig, card_gib: float | None) -> Card | None:
    """Return the card to plan for; None where the recipe runs on the CPU."""
    gib = card_gib or config.model.min_gpu_gib
    return card_of(gib) if gib else None


def phase_gib(config: RunConfig, card: Card, phase: Phase) -> float:
    """Return the most GiB that are reserved for one phase."""
    return simulate_phase(config, architecture_of(config), card, phase).reserved_gib


def show_progress(items: Sequence[T], description: str) -> Iterable[T]:
    """Iterate; on a terminal a bar shows how far it is."""
    console = Console(stderr=True)
    return tracked(items, description, console=console)
