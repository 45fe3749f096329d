"""Which settings fit a card: found by trying, that is by simulating the phases they bear on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prism_lite.config import RunConfig
from prism_lite.planner.planning import Plan, plan_phase, with_settings
from prism_lite.planner.workload import PhaseName, Stage
from prism_lite.rollouts import MOST_ROWS

Part = tuple[Stage, PhaseName]


@dataclass(frozen=True)
class Found:
    """The largest tried value of a setting that fits, and the peak with it; None where none does."""

    setting: str
    now: int
    largest: int | None
    peak_gib: float | None


@dataclass(frozen=True)
class _Knob:
    setting: str
    now: Callable[[RunConfig], int]
    change: Callable[[RunConfig, int], RunConfig]
    parts: tuple[Part, ...]  # whose need it decides


def _with_pixels(config: RunConfig, pixels: int) -> RunConfig:
    """Other pictures, and as many more or fewer tokens in prompts and packs."""
    model = config.model
    change = (pixels - model.max_pixels) // 1024
    return with_settings(
        config,
        model__max_pixels=pixels,
        model__max_prompt_tokens=model.max_prompt_tokens + change,
        model__max_pack_tokens=model.max_pack_tokens + change,
    )


def _with_group(config: RunConfig, size: int) -> RunConfig:
    return with_settings(config, align__group_size=size, rlvr__group_size=size)


_GROUP = _Knob(
    "align.group_size and rlvr.group_size",
    lambda config: config.rlvr.group_size,
    _with_group,
    (("align", "judge"), ("align", "sample")),
)
_PACK = _Knob(
    "model.max_pack_tokens",
    lambda config: config.model.max_pack_tokens,
    lambda config, value: with_settings(config, model__max_pack_tokens=value),
    (("align", "train"), ("warmup", "judge")),
)
_PIXELS = _Knob(
    "model.max_pixels (prompt and pack grow with it)",
    lambda config: config.model.max_pixels,
    _with_pixels,
    (("align", "train"), ("warmup", "sample")),
)
_ROWS = _Knob(
    "sampling.max_rows",
    lambda config: config.sampling.max_rows or MOST_ROWS,
    lambda config, value: with_settings(config, sampling__max_rows=value),
    (("warmup", "sample"), ("align", "sample")),
)
_PICTURES = _Knob(
    "model.max_cached_pictures",
    lambda config: config.model.max_cached_pictures,
    lambda config, value: with_settings(config, model__max_cached_pictures=value),
    (("align", "train"),),
)


def find_largest(config: RunConfig, plan: Plan) -> list[Found]:
    """Largest group size, pack and picture that fit, each with the rest as it is.

    Tried are powers of two around the present value, then the middle between the last two.
    """
    return [
        _largest(config, plan, knob, _around(knob.now(config))) for knob in (_GROUP, _PACK, _PIXELS)
    ]


def what_to_lower(config: RunConfig, plan: Plan) -> list[Found]:
    """Settings that make the plan fit when lowered alone, and how far; found by trying.

    Empty where the plan fits, or has no card.
    """
    room = plan.room_gib
    if room is None or plan.fits:
        return []
    failing: set[Part] = {
        (stage.stage, phase.phase)
        for stage in plan.stages.values()
        for phase in stage.phases
        if phase.peak.total / 2**30 > room
    }
    found = []
    for knob in (_PACK, _ROWS, _GROUP, _PICTURES, _PIXELS):
        limited = _Knob(knob.setting, knob.now, knob.change, tuple(sorted(failing)))
        now = knob.now(config)
        values = [now // 2, now // 4, now // 8]
        item = _largest(
            config, plan, limited, [value for value in values if value > 0], refine=False
        )
        if item.largest is not None:
            found.append(item)
    return found


def _around(now: int) -> list[int]:
    return [now * factor for factor in (8, 4, 2, 1)] + [now // 2, now // 4]


def _largest(
    config: RunConfig, plan: Plan, knob: _Knob, values: Sequence[int], *, refine: bool = True
) -> Found:
    """Bisect over values from large to small; need grows with the value."""
    room = plan.room_gib
    assert room is not None
    card_gib = plan.card.gib if plan.card else None

    def need(value: int) -> float | None:
        """GiB, or None where the settings contradict one another."""
        changed = knob.change(config, value)
        try:
            return max(plan_phase(changed, card_gib, *part) for part in knob.parts)
        except ValueError:
            return None

    best: tuple[int, float] | None = None
    low, high = 0, len(values) - 1
    too_large: int | None = None
    while low <= high:
        middle = (low + high) // 2
        gib = need(values[middle])
        if gib is not None and gib <= room:
            best, high = (values[middle], gib), middle - 1
        else:
            too_large, low = values[middle], middle + 1
    if refine and best is not None and too_large is not None and too_large > best[0]:
        between = (best[0] + too_large) // 2
        gib = need(between)
        if gib is not None and gib <= room:
            best = between, gib
    return Found(knob.setting, knob.now(config), *(best or (None, None)))
