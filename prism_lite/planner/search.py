"""Which settings fit a card: found by simulating the phases that they change."""

from __future__ import annotations

import functools
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prism_lite.config import RunConfig
from prism_lite.models.optim import optimizer_name
from prism_lite.planner.architectures import architecture_of
from prism_lite.planner.plan import Plan, phase_gib, show_progress
from prism_lite.planner.workload import CELL, PHASES, Phase
from prism_lite.recipe import with_overrides
from prism_lite.sampling.rollouts import MOST_ROWS

_LARGEST = 4  # times the present value is the largest that is tried, and a quarter the smallest
_PACK_STEP = 512  # tokens
_SMALL_CACHE_GIB = 0.25
_SAMPLING = ("sample", "panel", "evaluate")


@dataclass(frozen=True)
class LargestValue:
    """The largest value of a setting that fits, and the plan's peak with it; None where none does.

    Attributes:
        next_larger: the next value, which does not fit; None where no larger one was tried.
    """

    setting: str
    now: int
    largest: int | None
    peak_gib: float | None
    next_larger: int | None


@dataclass(frozen=True)
class Moved:
    """A plan's peak with settings that move memory to the CPU, as they are given to the command."""

    settings: str
    saved_gib: float
    peak_gib: float
    fits: bool


@dataclass(frozen=True)
class _Setting:
    """A setting of which a larger value takes more memory.

    Attributes:
        value: reads it.
        overrides: the dotted keys and values that set it.
        grid: values to try around the present one, ascending.
        phases: those whose memory it changes.
    """

    name: str
    value: Callable[[RunConfig], int]
    overrides: Callable[[RunConfig, int], dict[str, int]]
    grid: Callable[[int], list[int]]
    phases: tuple[Phase, ...]


def _set_pixels(config: RunConfig, pixels: int) -> dict[str, int]:
    """Change the pictures' size, and prompts and packs by as many tokens."""
    model = config.model
    more_tokens = (pixels - model.max_pixels) // CELL**2
    return {
        "model.max_pixels": pixels,
        "model.max_prompt_tokens": model.max_prompt_tokens + more_tokens,
        "model.max_pack_tokens": model.max_pack_tokens + more_tokens,
    }


def _squares(pixels: int) -> list[int]:
    """Return the pixels of square pictures whose sides are 2, 4, 6, ... visual tokens."""
    longest = int((_LARGEST * pixels) ** 0.5) // CELL
    return [(CELL * side) ** 2 for side in range(2, longest + 1, 2)]


_GROUP = _Setting(
    "align.group_size and rlvr.group_size",
    lambda config: config.rlvr.group_size,
    lambda _config, size: {"align.group_size": size, "rlvr.group_size": size},
    lambda now: [*range(2, _LARGEST * now + 1, 2)],
    tuple(phase for phase in PHASES if phase.stage in ("align", "rlvr")),
)
_PACK = _Setting(
    "model.max_pack_tokens",
    lambda config: config.model.max_pack_tokens,
    lambda _config, tokens: {"model.max_pack_tokens": tokens},
    lambda now: [*range(_PACK_STEP, _LARGEST * now + 1, _PACK_STEP)],
    PHASES,
)
_PIXELS = _Setting(
    "model.max_pixels (prompt and pack change with it)",
    lambda config: config.model.max_pixels,
    _set_pixels,
    _squares,
    PHASES,
)
_ROWS = _Setting(
    "sampling.max_rows",
    lambda config: config.sampling.max_rows or MOST_ROWS,
    lambda _config, rows: {"sampling.max_rows": rows},
    lambda now: [*range(1, _LARGEST * now + 1)],
    tuple(phase for phase in PHASES if phase.work in _SAMPLING),
)


def find_largest(config: RunConfig, plan: Plan) -> list[LargestValue]:
    """Search the largest group size, pack and picture that fit, each with the rest as it is."""
    results = []
    for setting in (_GROUP, _PACK, _PIXELS):
        now = setting.value(config)
        # A plan that fits does so with smaller values too.
        values = [v for v in sorted({*setting.grid(now), now}) if v >= now or not plan.fits]
        results.append(_largest(config, plan, setting, values, setting.phases))
    return results


def what_to_lower(config: RunConfig, plan: Plan) -> tuple[str, list[LargestValue]]:
    """Search settings that make a plan fit when lowered, and how far.

    Returns:
        How they help, in words; and those that are enough alone, else the rows of sampling and the pack
        of the rest together. Empty where not even these are enough.
    """
    alone = [
        _largest(config, plan, setting, _lower_values(config, setting), plan.failing)
        for setting in (_PACK, _ROWS, _GROUP, _PIXELS)
        if set(plan.failing) <= set(setting.phases)  # others leave a failing phase as it is
    ]
    alone = [result for result in alone if result.largest is not None]
    if alone:
        return "lowering one of these is enough", alone
    together = []
    for setting, is_sampling in ((_ROWS, True), (_PACK, False)):
        phases = [phase for phase in plan.failing if (phase.work in _SAMPLING) == is_sampling]
        if phases:
            values = _lower_values(config, setting)
            together.append(_largest(config, plan, setting, values, phases))
    is_enough = all(result.largest is not None for result in together)
    return "no setting is enough alone; these together are", together if is_enough else []


def _lower_values(config: RunConfig, setting: _Setting) -> list[int]:
    now = setting.value(config)
    return [value for value in setting.grid(now) if now / _LARGEST <= value < now]


def _largest(
    config: RunConfig,
    plan: Plan,
    setting: _Setting,
    values: list[int],
    affected: Sequence[Phase],
) -> LargestValue:
    """Bisect ascending values for the largest with which the affected phases fit.

    The phase that needs most now is bisected first. The others usually fit at the value that it leaves
    and cost one simulation each.
    """
    card, now = plan.card, setting.value(config)
    none_fits = LargestValue(setting.name, now, None, None, values[0] if values else None)
    assert card is not None

    @functools.cache
    def need_gib(phase: Phase, value: int) -> float:
        """Return -inf where settings contradict one another: the value is too small, not too large."""
        if value == now:
            return plan.phases[phase].reserved_gib
        try:
            changed = with_overrides(config, setting.overrides(config, value))
            return phase_gib(changed, card, phase)
        except ValueError:
            return -math.inf

    num_fitting = len(values)  # of `values`, from the first
    phases = [phase for phase in plan.phases if phase in affected]
    phases.sort(key=lambda phase: -plan.phases[phase].reserved_gib)
    for phase in show_progress(phases, setting.name):
        if num_fitting == 0 or need_gib(phase, values[0]) > plan.room_gib:
            return none_fits
        if need_gib(phase, values[num_fitting - 1]) > plan.room_gib:
            need_of_phase = functools.partial(need_gib, phase)
            num_fitting = bisect_right(
                values, plan.room_gib, lo=1, hi=num_fitting - 1, key=need_of_phase
            )
    largest = values[num_fitting - 1]
    needs = [need_gib(phase, largest) for phase in phases]
    if -math.inf in needs:
        return none_fits
    others = [plan.phases[phase].reserved_gib for phase in plan.phases if phase not in phases]
    next_larger = values[num_fitting] if num_fitting < len(values) else None
    if largest < now and next_larger is None:
        next_larger = now  # the present value, which does not fit, comes after the last of `values`
    return LargestValue(setting.name, now, largest, max(needs + others), next_larger)


def what_to_move(config: RunConfig, plan: Plan) -> list[Moved]:
    """Simulate what each setting saves that keeps less on the card for more time, and all together.

    Only those are tried that are not on yet. Empty where the plan fits, or has no card.
    """
    if plan.card is None or plan.fits:
        return []
    moves = _moves(config, plan)
    if len(moves) > 1:
        moves["all of these"] = {k: v for values in moves.values() for k, v in values.items()}
    kept_gib = [s.reserved_gib for phase, s in plan.phases.items() if phase not in plan.failing]
    results = []
    for text, values in moves.items():
        changed = with_overrides(config, values)
        phases = show_progress(plan.failing, text)
        peak_gib = max([*kept_gib, *(phase_gib(changed, plan.card, phase) for phase in phases)])
        fits = peak_gib <= plan.room_gib
        results.append(Moved(text, plan.peak_gib - peak_gib, peak_gib, fits))
    return results


def _moves(config: RunConfig, plan: Plan) -> dict[str, dict[str, Any]]:
    """Return overrides that move memory to the CPU, by how they are given to the command."""
    model = config.model
    checkpointing: dict[str, Any] = {}
    moves: list[dict[str, Any]] = []
    if not model.gradient_checkpointing:
        checkpointing = {"model.gradient_checkpointing": True}
        moves.append(checkpointing)
    if not model.offload_checkpoints:
        moves.append(checkpointing | {"model.offload_checkpoints": True})
    if not model.vision_on_cpu:
        moves.append({"model.vision_on_cpu": True})
    if not model.embeddings_on_cpu and not architecture_of(config).config.tie_word_embeddings:
        moves.append({"model.embeddings_on_cpu": True})
    if model.picture_cache_gib > _SMALL_CACHE_GIB:
        moves.append({"model.picture_cache_gib": _SMALL_CACHE_GIB})
    sections = dict.fromkeys(phase.stage for phase in plan.failing)
    if "align" in sections:  # a section has the optimizer of its name; alignment has two
        sections["discriminator"] = None
    optims = {
        f"{section}.optim.name": "paged_adamw8bit"
        for section in sections
        if "paged" not in optimizer_name(getattr(config, section).optim, "cuda")
    }
    moves += [optims] if optims else []
    return {
        " ".join(f"{key}={str(value).lower()}" for key, value in move.items()): move
        for move in moves
    }
