"""A line chart as SVG, for pages and files that must not depend on scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 520, 220, 52, 12, 10, 26


@dataclass(frozen=True)
class Curve:
    """Points (x, y) in the order of x, and how they are drawn."""

    points: Sequence[tuple[float, float]]
    color: str
    is_dashed: bool = False


def line_chart(title: str, curves: Mapping[str, Curve]) -> str:
    """Return a figure with these curves and a legend; "" if none has a point."""
    curves = {name: curve for name, curve in curves.items() if curve.points}
    if not curves:
        return ""
    xs = [x for curve in curves.values() for x, _ in curve.points]
    ys = [y for curve in curves.values() for _, y in curve.points]
    low, high = min(ys), max(ys)
    if low == high:
        low, high = low - 0.5, high + 0.5
    left, right = min(xs), max(max(xs), min(xs) + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return _LEFT + width * (x - left) / (right - left), _TOP + height * (high - y) / (
            high - low
        )

    pieces = []
    for value in (low, (low + high) / 2, high):
        _, height = at(left, value)
        pieces.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    for value, anchor in ((left, "start"), (right, "end")):
        place, _ = at(value, low)
        pieces.append(
            f'<text x="{place:.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">step {value:g}</text>'
        )
    legend = []
    for name, curve in curves.items():
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(x, y) for x, y in curve.points))
        dashes = ' stroke-dasharray="5 4"' if curve.is_dashed else ""
        pieces.append(f'<polyline points="{points}" style="stroke: {curve.color}"{dashes}/>')
        line = f'<line x1="0" x2="24" y1="6" y2="6" style="stroke: {curve.color}"{dashes}/>'
        legend.append(f'<span><svg width="26" height="12">{line}</svg> {escape(name)}</span>')
    return (
        f'<figure class="line-chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'{"".join(pieces)}</svg><div class="chart-legend">{"".join(legend)}</div></figure>'
    )
