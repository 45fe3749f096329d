"""From runs with few decoder layers and few drawn tokens to the whole: layers are alike.

Memory in a region (before the k-th layer's forward, say) is linear in the number of layers, in the
number of adapted layers and, while decoding, in the number of tokens drawn. So two or three small runs
give every region of the full one; the highest is the peak. Tests compare this with full runs to the
byte (tests/unit/test_planner.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prism_lite.planner.tracker import CATEGORIES, Key, Peak

NUM_DRAWS = 4  # decoded tokens of a small run: two passes over the layers give the slope


@dataclass(frozen=True)
class Depth:
    """Decoder layers of a run: `frozen` below the first layer that the phase trains, and the rest."""

    frozen: int
    trained: int

    @property
    def total(self) -> int:
        return self.frozen + self.trained


def small_depths(full: Depth, num_deepstack: int) -> list[Depth]:
    """Runs that determine the full one: a base, one more frozen layer, one more trained layer.

    A count that is small already is not reduced.
    """
    frozen = min(full.frozen, num_deepstack + 2)
    trained = min(full.trained, 2 if full.frozen >= num_deepstack else num_deepstack + 2)
    base = Depth(frozen, trained)
    more = []
    if frozen < full.frozen:
        more.append(Depth(frozen + 1, trained))
    if trained < full.trained:
        more.append(Depth(frozen, trained + 1))
    return [base, *more]


def extrapolate(
    runs: Mapping[Depth, Mapping[Key, Peak]], full: Depth, num_deepstack: int
) -> dict[Key, Peak]:
    """Regions of the full depth from those of the small runs (the first is the base)."""
    named = [_by_place(regions, depth, num_deepstack) for depth, regions in runs.items()]
    weights = _weights(list(runs), full)
    assert all(regions.keys() == named[0].keys() for regions in named), "the runs differ in shape"
    return {place: _combined([regions[place] for regions in named], weights) for place in named[0]}


def extrapolate_seconds(runs: Mapping[Depth, float], full: Depth) -> float:
    """The work of the full depth from that of the small runs."""
    weights = _weights(list(runs), full)
    return sum(w * seconds for w, seconds in zip(weights, runs.values(), strict=True))


def _weights(depths: list[Depth], full: Depth) -> list[float]:
    """Of each run in the linear continuation to the full depth; they sum to 1."""
    base, *others = depths
    weights = [
        full.frozen - base.frozen if other.frozen > base.frozen else full.trained - base.trained
        for other in others
    ]
    return [1.0 - sum(weights), *map(float, weights)]


def _by_place(regions: Mapping[Key, Peak], depth: Depth, num_deepstack: int) -> dict[Key, Peak]:
    """Regions under names that do not hang on the depth: a layer may have two (first and last)."""
    result: dict[Key, Peak] = {}
    for key, peak in regions.items():
        if key[0] not in ("forward", "backward"):
            result[key] = peak
            continue
        kind, number_of_pass, layer = key
        assert isinstance(layer, int)
        for place in _places(layer, depth, num_deepstack):
            result[kind, number_of_pass, place] = peak
    return result


def _places(layer: int, depth: Depth, num_deepstack: int) -> list[str]:
    if layer < num_deepstack:
        return [f"layer {layer}"]
    parts = {"frozen": (num_deepstack, depth.frozen), "trained": (depth.frozen, depth.total)}
    found = []
    for name, (start, stop) in parts.items():
        start = max(start, num_deepstack)
        if start <= layer < stop:
            found += [f"first {name}"] if layer == start else []
            found += [f"last {name}"] if layer == stop - 1 else []
    return found


def extend_decoding(
    regions: Mapping[Key, Peak], *, num_draws: int, num_tokens: int
) -> dict[Key, Peak]:
    """Regions of a completion of `num_tokens` from one of `num_draws`, each draw in a pass of its own.

    The slope of a pass is that between the last two; of a draw, that between the last two that another
    pass follows.
    """
    steps = num_tokens - num_draws
    if steps <= 0:
        return dict(regions)
    result = dict(regions)
    for key in regions:
        if key[0] in ("forward", "head") and key[1] == num_draws:
            last, before = key, (key[0], num_draws - 1, *key[2:])
        elif key[0] == "draw" and key[1] in (num_draws - 1, num_draws):
            last, before = ("draw", num_draws - 1), ("draw", num_draws - 2)
        else:
            continue
        peaks = [regions[key], regions[last], regions[before]]
        assert isinstance(key[1], int)
        result[key[0], key[1] + steps, *key[2:]] = _combined(peaks, [1.0, steps, -steps])
    return result


def decoding_seconds(regions: Mapping[Key, Peak], *, num_draws: int, num_tokens: int) -> float:
    """The work of a completion of `num_tokens`, its passes growing as the last two do."""
    by_pass: dict[int, float] = {}
    total = 0.0
    for key, peak in regions.items():
        total += peak.seconds
        if key[0] in ("forward", "head", "draw") and isinstance(key[1], int):
            number = key[1] + (key[0] == "draw")  # a draw belongs to the pass that follows it
            by_pass[number] = by_pass.get(number, 0.0) + peak.seconds
    steps = max(0, num_tokens - num_draws)
    if steps == 0:
        return total
    last, before = by_pass[num_draws], by_pass[num_draws - 1]
    return total + steps * last + (last - before) * steps * (steps + 1) / 2


def _combined(peaks: Sequence[Peak], weights: Sequence[float]) -> Peak:
    def mix(values: Iterable[float]) -> int:
        return round(sum(w * value for w, value in zip(weights, values, strict=True)))

    return Peak(
        mix(peak.total for peak in peaks),
        {name: mix(peak.by_category[name] for peak in peaks) for name in CATEGORIES},
        mix(peak.off_card for peak in peaks),
    )
