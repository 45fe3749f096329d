"""Tab Data: what a run was trained on, and a check of one's own file before training on it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from demo.runs import folder, samples
from demo.screens import html, widgets
from demo.screens.pictures import picture_file
from demo.screens.widgets import QUIET
from demo.site import Site, in_words
from prism_lite.digits import wording
from prism_lite.digits.task import ATTRIBUTION

PAGE_ROWS = 12
MAX_CHECKED_ROWS = 10_000
MAX_SHOWN_FINDINGS = 200
FILE_TYPES = [".jsonl", ".json", ".csv", ".tsv", ".parquet"]
ALL_SIZES = "any number of digits"


def build(site: Site, tab: gr.Tab, run: gr.Dropdown) -> None:
    """Lay out the tab and wire it. Its rows are drawn when it is first looked at: that takes a second."""
    filters = [run, *_filters()]
    with gr.Row():
        earlier = gr.Button("Earlier rows", elem_id="earlier", min_width=120)
        number = gr.Number(1, label="Page", precision=0, minimum=1, min_width=90, elem_id="page")
        later = gr.Button("Later rows", elem_id="later", min_width=120)
    count = gr.HTML(elem_id="data-count")
    gallery = gr.Gallery(
        label="Pictures and questions", columns=4, height=430, object_fit="contain", buttons=[],
        allow_preview=False, elem_id="data-gallery", interactive=False,
    )  # fmt: skip
    place = gr.Number(
        1, label="Row of this page (or click its picture)", precision=0, minimum=1,
        maximum=PAGE_ROWS, elem_id="data-row",
    )  # fmt: skip
    row = [gr.HTML(elem_id="row-about")]
    with gr.Row():
        row += [
            widgets.completion(
                "Demonstration (SFT imitates it)", elem_id="demonstration", min_width=280
            ),
            widgets.completion(
                "Teacher (alignment compares with it)", elem_id="teacher", min_width=280
            ),
        ]
    find = functools.partial(_found_rows, site)
    screen = [number, gallery, count, place, *row]

    def pick(event: gr.SelectData) -> int:
        return event.index + 1

    def show_row(row_number: float | None, page_number: float | None, *chosen: Any) -> Any:
        found = find(*chosen)
        index = (int(page_number or 1) - 1) * PAGE_ROWS + int(row_number or 1) - 1
        return _row_screen(found[index] if 0 <= index < len(found) else None)

    def turn(by: int) -> Callable[..., Any]:
        return lambda page_number, *chosen: _screen(site, find, (page_number or 1) + by, chosen)

    first = in_words(lambda *chosen: _screen(site, find, 1, chosen))
    for component in filters:
        component.change(first, filters, screen, **QUIET)
    for event, by in ((tab.select, 0), (number.submit, 0), (earlier.click, -1), (later.click, 1)):
        event(in_words(turn(by)), [number, *filters], screen, **QUIET)
    gallery.select(pick, None, [place], **QUIET)
    place.change(in_words(show_row), [place, number, *filters], row, **QUIET)
    if not site.home.is_shared:
        _build_check()


def _filters() -> list[gr.Component]:
    with gr.Row():
        return [
            gr.Dropdown(
                list(samples.SOURCES),
                value="SFT demonstrations",
                label="Rows",
                elem_id="data-source",
            ),
            gr.Dropdown(["all", *wording.QUESTIONS], value="all", label="Question kind"),
            gr.Dropdown([ALL_SIZES, *map(str, range(2, 7))], value=ALL_SIZES, label="Difficulty"),
            gr.Dropdown(
                ["all", "clean", "with a slip"], value="all", label="Demonstration", elem_id="slips"
            ),
            gr.Slider(50, 4000, value=4000, step=50, label="At most this many characters"),
        ]


def _found_rows(
    site: Site, run_id: str, source: str, kind: str, size: str, slips: str, longest: float
) -> list[samples.Row]:
    return samples.filtered(
        site.path(run_id),
        source,
        kind=kind,
        difficulty=0 if size == ALL_SIZES else int(size),
        slips=slips,
        longest=int(longest),
    )


def _screen(
    site: Site, find: Callable[..., list[samples.Row]], page_number: float, chosen: Any
) -> tuple[Any, ...]:
    """A page of the rows that pass the filters, and its first row."""
    found = find(*chosen)
    last = max(1, -(-len(found) // PAGE_ROWS))
    current = min(max(1, int(page_number)), last)
    shown = found[(current - 1) * PAGE_ROWS : current * PAGE_ROWS]
    pictures = [
        (picture_file(row.sample.pictures[0].open()), row.sample.question)
        for row in shown
        if row.sample.pictures
    ]
    slipped = sum(bool(row.slip) for row in found)
    text = f"{len(found):,} rows, page {current} of {last}."
    if slipped:
        text += f" {slipped:,} of the demonstrations slip ({slipped / len(found):.0%})."
    if folder.read_config(site.path(chosen[0]))["data"]["task"] == "digits":
        text += f" Pictures: {ATTRIBUTION}."
    if not found:
        text = "No row passes these filters: loosen one of them."
    return current, pictures, html.note(text), 1, *_row_screen(shown[0] if shown else None)


def _build_check() -> None:
    """Check an own file; not for guests, since its rows may name files of this machine."""
    gr.HTML("<h3>Check your own file</h3>")
    with gr.Row():
        with gr.Column(min_width=260):
            upload = gr.File(
                label="JSONL, JSON, CSV, TSV or Parquet, at most 10 MiB",
                file_types=FILE_TYPES,
                type="filepath",
                elem_id="data-file",
                height=140,
            )
            stage = gr.Dropdown(
                ["any stage", "sft", "warmup", "align", "rlvr", "eval"], value="any stage",
                label="Fields demanded by", elem_id="data-stage",
            )  # fmt: skip
            button = gr.Button("Check", variant="primary", elem_id="check")
        with gr.Column(scale=2, min_width=280):
            summary = gr.HTML(
                html.note(
                    "Upload a file of your rows: format, every defect with its row, and how to mend it. "
                    "For large files and pictures on disk: prism-lite data check PATH."
                ),
                elem_id="check-summary",
            )
            first = gr.Textbox(label="First row as it is understood", lines=4, interactive=False)
    findings = gr.Dataframe(
        headers=["row", "kind", "what is wrong"], interactive=False, show_label=False,
        elem_id="findings", wrap=True, buttons=[], max_height=360,
    )  # fmt: skip
    button.click(
        in_words(check_file),
        [upload, stage],
        [summary, first, findings],
        api_name="check",
        concurrency_limit=1,
    )


def check_file(path: str | None, stage: str) -> tuple[Any, ...]:
    """The doctor's report on an uploaded file: summary, first sample, findings."""
    from prism_lite.data.checks.check import CheckRules, check

    if not path:
        raise ValueError("no file yet: upload one first.")
    if Path(path).suffix.lower() not in FILE_TYPES:
        raise ValueError(f"{Path(path).suffix or 'this file'}: expected {', '.join(FILE_TYPES)}.")
    rules = CheckRules() if stage == "any stage" else CheckRules(stage=stage)  # pyright: ignore
    report = check(path, rules=rules, limit=MAX_CHECKED_ROWS)
    place = str(Path(path))
    name = Path(path).name
    counts = ", ".join(f"{kind} {num}" for kind, num in sorted(report.counts.items()))
    text = (
        f"{name}: {report.convention or 'not readable'} format, {report.num_rows:,} rows read, "
        f"{report.num_clean:,} clean."
    )
    text = text + (f" Rejected: {counts}." if counts else " No defects.")
    table = [
        [finding.row or "file", finding.kind, finding.message.replace(place, name)]
        for finding in report.findings[:MAX_SHOWN_FINDINGS]
    ]
    return html.note(text, kind="good" if report.ok else "warn"), report.first_sample, table or None


def _row_screen(row: samples.Row | None) -> tuple[Any, ...]:
    if row is None:
        return "", None, None
    sample = row.sample
    cells = [
        f"{sample.question}",
        f"gold: {sample.answer if sample.answer is not None else 'none'}",
    ]
    if row.slip:
        cells.append(f"the demonstration slips in {row.slip}")
    return (
        html.note(" · ".join(cells)),
        html.part_spans(sample.demonstration) if sample.demonstration else None,
        html.part_spans(sample.teacher) if sample.teacher else None,
    )
