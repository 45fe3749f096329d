"""Which settings fit a card: found by trying, that is by simulating the phases they bear on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from prism_lite.config import RunConfig
from prism_lite.planner.plan import GIB, Each, Part, Plan, in_silence, plan_phase, with_settings
from prism_lite.planner.tracker import Peak
from prism_lite.planner.workload import CELL, PHASES
from prism_lite.sampling.rollouts import MOST_ROWS

MOST = 4  # times the present value is the largest that is tried
PACK_STEP = 512  # tokens
# What grows with a value grows at most this much faster: a pack may take up a second of what it holds one
# of now.
MOST_GROWTH = 2


@dataclass(frozen=True)
class Found:
    """The largest value of a setting that fits, and the plan's peak with it; None where none does.

    Attributes:
        next_larger: the next value, which does not fit; None where none larger was tried.
    """

    setting: str
    now: int
    largest: int | None
    peak_gib: float | None
    next_larger: int | None


@dataclass(frozen=True)
class _Knob:
    setting: str
    now: Callable[[RunConfig], int]
    change: Callable[[RunConfig, int], RunConfig]
    values: Callable[[int], list[int]]  # that may be tried, ascending
    parts: tuple[Part, ...]  # whose need it bears on


def _with_pixels(config: RunConfig, pixels: int) -> RunConfig:
    """Other pictures, and as many more or fewer tokens in prompts and packs."""
    model = config.model
    change = (pixels - model.max_pixels) // CELL**2
    return with_settings(
        config,
        model__max_pixels=pixels,
        model__max_prompt_tokens=model.max_prompt_tokens + change,
        model__max_pack_tokens=model.max_pack_tokens + change,
    )


def _with_group(config: RunConfig, size: int) -> RunConfig:
    return with_settings(config, align__group_size=size, rlvr__group_size=size)


def _squares(pixels: int) -> list[int]:
    """Pixels of square pictures whose sides are an even number of visual tokens."""
    longest = int((MOST * pixels) ** 0.5) // CELL
    return [(CELL * side) ** 2 for side in range(2, longest + 1, 2)]


_ALL: tuple[Part, ...] = tuple(
    (stage, phase) for stage, phases in PHASES.items() for phase in phases
)
_SAMPLING: tuple[Part, ...] = tuple(part for part in _ALL if part[1] == "sample")
_OF_GROUPS: tuple[Part, ...] = tuple(part for part in _ALL if part[0] in ("align", "rlvr"))
_GROUP = _Knob(
    "align.group_size and rlvr.group_size",
    lambda config: config.rlvr.group_size,
    _with_group,
    lambda now: [*range(2, MOST * now + 1, 2)],
    _OF_GROUPS,
)
_PACK = _Knob(
    "model.max_pack_tokens",
    lambda config: config.model.max_pack_tokens,
    lambda config, value: with_settings(config, model__max_pack_tokens=value),
    lambda now: [*range(PACK_STEP, MOST * now + 1, PACK_STEP)],
    _ALL,
)
_PIXELS = _Knob(
    "model.max_pixels (prompt and pack change with it)",
    lambda config: config.model.max_pixels,
    _with_pixels,
    _squares,
    _ALL,
)
_ROWS = _Knob(
    "sampling.max_rows",
    lambda config: config.sampling.max_rows or MOST_ROWS,
    lambda config, value: with_settings(config, sampling__max_rows=value),
    lambda now: [*range(1, MOST * now + 1)],
    _SAMPLING,
)


def find_largest(config: RunConfig, plan: Plan, *, each: Each = in_silence) -> list[Found]:
    """Largest group size, pack and picture that fit, each with the rest as it is."""
    found = []
    for knob in (_GROUP, _PACK, _PIXELS):
        now = knob.now(config)
        values = sorted({*knob.values(now), now})
        if plan.fits:
            values = values[values.index(now) :]
        found.append(_largest(config, plan, knob, values, knob.parts, each))
    return found


def what_to_lower(config: RunConfig, plan: Plan, *, each: Each = in_silence) -> list[Found]:
    """Settings that make the plan fit when lowered alone, and how far.

    Empty where the plan fits, has no card, or none is enough alone.
    """
    found = []
    for knob in (_PACK, _ROWS, _GROUP, _PIXELS):
        if not plan.failing or not set(plan.failing) <= set(knob.parts):
            continue  # it leaves a part as it is that does not fit
        now = knob.now(config)
        values = [value for value in knob.values(now) if now / 4 <= value < now]
        item = _largest(config, plan, knob, values, plan.failing, each)
        if item.largest is not None:
            found.append(item)
    return found


def what_to_lower_together(
    config: RunConfig, plan: Plan, *, each: Each = in_silence
) -> list[Found]:
    """Rows for the sampling that does not fit, the pack for the rest; empty where that is not enough."""
    found = []
    for knob, is_sampling in ((_ROWS, True), (_PACK, False)):
        parts = [part for part in plan.failing if (part[1] == "sample") == is_sampling]
        if not parts:
            continue
        now = knob.now(config)
        values = [value for value in knob.values(now) if now / 4 <= value < now]
        found.append(_largest(config, plan, knob, values, parts, each))
    return [] if any(item.largest is None for item in found) else found


def _largest(
    config: RunConfig,
    plan: Plan,
    knob: _Knob,
    values: Sequence[int],
    parts: Sequence[Part],
    each: Each,
) -> Found:
    """The largest of ascending values with which all parts fit; need grows with the value.

    The part that needs most now is searched first. The others are tried at what it found, and searched
    below only where they do not fit there.
    """
    room, needs, now = plan.room_gib, plan.needs, knob.now(config)
    assert room is not None and plan.card is not None
    card_gib = plan.card.gib
    tried: dict[tuple[Part, int], float | None] = {
        (part, now): needs[part] for part in parts if part in needs
    }

    def need(part: Part, value: int) -> float | None:
        """GiB, or None where the settings contradict one another: the value is too small."""
        if (part, value) not in tried:
            try:
                tried[part, value] = plan_phase(knob.change(config, value), card_gib, *part)
            except ValueError:
                tried[part, value] = None
        return tried[part, value]

    ordered = sorted((part for part in parts if part in needs), key=lambda part: -needs[part])
    high = len(values) - 1
    is_lowered = bool(values) and values[-1] < now
    checked: list[Part] = []
    for part in each(ordered, knob.setting):
        if checked and _bound(config, plan.peaks[part], values[high] / now) <= room:
            continue
        # lowering: whether it can help at all shows at the least
        first = high if checked else 0 if is_lowered else None
        checked.append(part)
        known = [(now, needs[part])]
        high = _highest_fit(partial(need, part), values, high, room, known, first)
        if high < 0:
            return Found(knob.setting, now, None, None, values[0] if values else None)
    found = values[high]
    changed = max(need(part, found) or 0.0 for part in checked)
    peak = max(changed, *(gib for part, gib in needs.items() if part not in checked), 0.0)
    larger = values[high + 1] if high + 1 < len(values) else now if found < now else None
    return Found(knob.setting, now, found, peak, larger)


def _bound(config: RunConfig, peak: Peak, growth: float) -> float:
    """GiB that a part cannot exceed with a value so many times the present one."""
    resident = sum(peak.by_category[name] for name in ("weights", "adapters", "optimizer"))
    pictures = peak.by_category["pictures"]
    rest = (peak.total - resident - pictures) * max(1.0, MOST_GROWTH * growth)
    most = max(pictures, min(pictures * growth, config.model.picture_cache_gib * GIB))
    return (resident + most + rest) / GIB


def _highest_fit(
    need: Callable[[int], float | None],
    values: Sequence[int],
    high: int,
    room: float,
    known: list[tuple[int, float]],
    first: int | None,
) -> int:
    """Index of the largest of values[: high + 1] whose need is within `room`, or -1.

    Args:
        known: values with their need, to guess from; grows.
        first: the index to try first.
    """
    low, best, num_tried = 0, -1, 0
    while low <= high:
        at = _guess(values, low, high, room, known) if first is None else first
        if num_tried % 3 == 2:
            at = (low + high) // 2  # a need that is no line must not make it slow
        first = None
        gib = need(values[at])
        if gib is None:
            low = at + 1
        elif gib <= room:
            best, low = at, at + 1
        else:
            high = at - 1
        if gib is not None:
            known.append((values[at], gib))
        num_tried += 1
    return best


def _guess(
    values: Sequence[int], low: int, high: int, room: float, known: Sequence[tuple[int, float]]
) -> int:
    """Index of the value at which a line through what is known reaches the room, within low..high."""
    (value_a, gib_a), (value_b, gib_b) = (0, 0.0), known[0]
    if len(known) > 1:
        (value_a, gib_a), (value_b, gib_b) = sorted(known, key=lambda item: abs(item[1] - room))[:2]
    if gib_a == gib_b and value_a != value_b and gib_a <= room:
        return high  # it does not hang on the value
    if value_a == value_b or gib_a == gib_b:
        return (low + high) // 2
    value = value_b + (room - gib_b) * (value_b - value_a) / (gib_b - gib_a)
    at = low
    while at < high and values[at + 1] <= value:
        at += 1
    return at
