"""Two runs side by side as HTML: what differs in their settings, their figures, their curves.

The same HTML is shown on the page and saved as a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from demo.runs import folder
from demo.runs.folder import STAGE_TITLES
from demo.screens import curves, html
from demo.screens.line_chart import Curve, line_chart

_SHOWN_PANELS = ("sft_loss", "pair_accuracy", "rewards", "entropy", "length", "evaluation")
_MISSING = "-"
_FILE_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:24px auto;padding:0 12px;"
    "color:#1a202c}table{border-collapse:collapse;margin:8px 0 20px}"
    "td,th{border:1px solid #d4dae1;padding:4px 10px;"
    "text-align:left}.line-charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));"
    "gap:18px}figure{margin:0}figcaption{font-weight:600}svg line{stroke:#d4dae1}svg polyline{fill:none;"
    "stroke-width:1.8}svg text{font-size:11px;fill:#5b6472}.chart-legend span{margin-right:12px;"
    "font-size:13px;display:inline-flex;align-items:center;gap:4px}.chart-legend line{stroke-width:2.5}"
    ".table-box{overflow-x:auto}svg{overflow:visible}"
    "@media(max-width:640px){figure>svg text{font-size:16px}}"
)


def setting_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[list[str]]:
    """Return a row (setting, value of each) for each setting that differs, in the order of the settings.

    A setting that one of the runs does not have, as it was trained by another edition, is shown as "-".
    """
    flat_one, flat_other = _flat(one), _flat(other)
    return [
        [key, _text(flat_one.get(key)), _text(flat_other.get(key))]
        for key in dict.fromkeys([*flat_one, *flat_other])
        if flat_one.get(key) != flat_other.get(key)
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _text(value: Any) -> str:
    return _MISSING if value is None else str(value)


def comparison_html(one: Path, other: Path, names: tuple[str, str]) -> str:
    """Return tables and curves of two runs; dashed curves are the second's."""
    solid, dashed = map(escape, names)
    pieces = [
        "<h3>Settings that differ</h3>",
        _settings_table(one, other, names),
        "<h3>Held-out figures</h3>",
        _results_table(one, other, names),
        f"<h3>Curves</h3><p>Solid: {solid}; dashed: {dashed}. Where they are equal one line is seen.</p>",
        f'<div class="line-charts">{_charts(one, other, names)}</div>',
    ]
    return f'<div class="two-runs">{"".join(pieces)}</div>'


def page_file(content: str, names: tuple[str, str]) -> str:
    """Return a complete HTML file with this content, which needs nothing else to be shown."""
    title = escape(f"{names[0]} and {names[1]}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_FILE_STYLE}</style><h1>{title}</h1>{content}</html>\n"
    )


def _settings_table(one: Path, other: Path, names: tuple[str, str]) -> str:
    rows = setting_differences(folder.read_config(one), folder.read_config(other))
    if not rows:
        return "<p>None: the settings are equal.</p>"
    is_missing = any(_MISSING in values for _, *values in rows)
    note = f"<p>{_MISSING}: not set, or not known to the version that trained this run.</p>"
    return html.table(["setting", *names], rows) + (note if is_missing else "")


def _results_table(one: Path, other: Path, names: tuple[str, str]) -> str:
    results = [folder.read_json(path / "results.json") for path in (one, other)]
    headers, _ = html.stages_table(results[0])
    rows_of = [{row[0]: row for row in html.stages_table(result)[1]} for result in results]
    rows = [
        [title, name, *rows[title][1:]]
        for title in STAGE_TITLES.values()
        for name, rows in zip(names, rows_of, strict=True)
        if title in rows
    ]
    if not rows:
        return "<p>No stage of either run is evaluated yet.</p>"
    return html.table(["stage", "run", *headers[1:]], rows)


def _charts(one: Path, other: Path, names: tuple[str, str]) -> str:
    charts = []
    for panel in curves.PANELS:
        if panel.id not in _SHOWN_PANELS:
            continue
        drawn: dict[str, Curve] = {}
        for name, path, is_dashed in ((names[0], one, False), (names[1], other, True)):
            frame, colors = curves.panel_plot(panel, folder.read_metrics(path))
            if frame is None:
                continue
            for curve, points in frame.groupby("curve", sort=False):
                if curve == curves.CHANCE:
                    continue
                pairs = list(zip(points["step"], points["value"], strict=True))
                drawn[f"{name}: {curve}"] = Curve(pairs, colors[str(curve)], is_dashed)
        charts.append(line_chart(panel.title, drawn))
    return "".join(charts) or "<p>Neither run has logged a step yet.</p>"
