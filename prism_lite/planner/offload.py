"""What those settings save that keep less on the card for more time, simulated one by one and together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prism_lite.config import RunConfig
from prism_lite.models.optim import optimizer_name
from prism_lite.planner.architectures import architecture_of
from prism_lite.planner.plan import Each, Plan, in_silence, plan_phase, with_settings
from prism_lite.planner.workload import Stage

SMALL_CACHE_GIB = 0.25
_OPTIMS: dict[Stage, tuple[str, ...]] = {  # sections whose optimizers a stage keeps
    "sft": ("sft",),
    "warmup": ("warmup",),
    "align": ("align", "discriminator"),
    "rlvr": ("rlvr",),
}


@dataclass(frozen=True)
class Moved:
    """A plan's peak with settings that move memory to the CPU, as one would give them."""

    settings: str
    saved_gib: float
    peak_gib: float
    fits: bool


def what_to_move(config: RunConfig, plan: Plan, *, each: Each = in_silence) -> list[Moved]:
    """What each such setting saves that is not on yet, and all of them together; simulated.

    Empty where the plan fits, or has no card.
    """
    if plan.fits or plan.card is None or plan.room_gib is None:
        return []
    moves = _moves(config, [stage for stage, _ in plan.failing])
    if len(moves) > 1:
        together = {name: value for values in moves.values() for name, value in values.items()}
        moves["all of these"] = together
    others = max((gib for part, gib in plan.needs.items() if part not in plan.failing), default=0)
    found = []
    for text, values in moves.items():
        changed = with_settings(config, **values)
        parts = each(plan.failing, text)
        peak = max(others, *(plan_phase(changed, plan.card.gib, *part) for part in parts))
        found.append(Moved(text, plan.peak_gib - peak, peak, peak <= plan.room_gib))
    return found


def _moves(config: RunConfig, stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    """The settings as one would give them, and as `with_settings` takes them."""
    model = config.model
    offered: list[dict[str, Any]] = []
    if not model.gradient_checkpointing:
        offered.append({"model__gradient_checkpointing": True})
    if not model.offload_checkpoints:
        offload = {"model__offload_checkpoints": True}
        needed = {} if model.gradient_checkpointing else {"model__gradient_checkpointing": True}
        offered.append(needed | offload)
    if not model.vision_on_cpu:
        offered.append({"model__vision_on_cpu": True})
    if not model.embeddings_on_cpu and not architecture_of(config).config.tie_word_embeddings:
        offered.append({"model__embeddings_on_cpu": True})
    if model.picture_cache_gib > SMALL_CACHE_GIB:
        offered.append({"model__picture_cache_gib": SMALL_CACHE_GIB})
    sections = dict.fromkeys(name for stage in stages for name in _OPTIMS[stage])
    kept = [name for name in sections if "paged" not in _optimizer_of(config, name)]
    if kept:
        offered.append({f"{name}__optim__name": "paged_adamw8bit" for name in kept})
    return {_as_given(values): values for values in offered}


def _optimizer_of(config: RunConfig, section: str) -> str:
    return optimizer_name(getattr(config, section).optim, "cuda")


def _as_given(values: dict[str, Any]) -> str:
    return " ".join(
        f"{name.replace('__', '.')}={'true' if value is True else value}"
        for name, value in values.items()
    )
