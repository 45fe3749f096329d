"""The memory planner: `plan(config)` simulates every stage's real step at full size, without a GPU.

architectures -> stand_in (a Backbone without data) -> phases (the stages' own steps) under simulate and
tracker -> extrapolate (few layers to all) -> plan -> report, search.
"""

from prism_lite.planner.hardware import CARDS, Card
from prism_lite.planner.planning import Plan, StagePlan, plan
from prism_lite.planner.tracker import CATEGORIES

__all__ = ["CARDS", "CATEGORIES", "Card", "Plan", "StagePlan", "plan"]
