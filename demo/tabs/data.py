"""Tab Data: the data of a run, and a check of the user's own file before training on it."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from demo.decoded_size import check_decoded_size
from demo.runs import folder, samples
from demo.runs.data_files import FILE_TYPES, column_map
from demo.runs.samples import ALL, CORRECT, WITH_ERRORS
from demo.screens import html, widgets
from demo.screens.pictures import picture_file
from demo.site import Header, Site, connect, errors_on_page
from prism_lite.digits import wording
from prism_lite.digits.task import ATTRIBUTION

if TYPE_CHECKING:
    from prism_lite.data.checks.check import Report

_PAGE_ROWS = 12
_MAX_CHECKED_ROWS = 10_000
_MAX_SHOWN_FINDINGS = 200
_MAX_SHOWN_HERE = 5  # findings in the four steps of a training
_ANY_STAGE = "any stage"


def build(site: Site, header: Header, tab: gr.Tab) -> None:
    """Lay out the tab and connect its events. Its rows are loaded when it is first opened."""
    filters = [header.run_choice, *_filters()]
    with gr.Row():
        previous = gr.Button("Previous page", elem_id="earlier", min_width=120)
        page = gr.Number(1, label="Page", precision=0, minimum=1, min_width=90, elem_id="page")
        following = gr.Button("Next page", elem_id="later", min_width=120)
    note = gr.HTML(elem_id="data-count")
    gallery = widgets.gallery("Pictures and questions", "data-gallery", columns=4, height=430)
    number = gr.Number(
        1, label="Row on this page (or click its picture)", precision=0, minimum=1,
        maximum=_PAGE_ROWS, elem_id="data-row",
    )  # fmt: skip
    row_screen: list[gr.Component] = [gr.HTML(elem_id="row-about")]
    with gr.Row():
        for title, elem_id in (
            ("Demonstration (imitated in SFT)", "demonstration"),
            ("Teacher (compared with in alignment)", "teacher"),
        ):
            row_screen.append(widgets.completion(title, elem_id, min_width=280))

    def read(run_id: str, *chosen: Any) -> list[samples.Row]:
        return samples.filtered_rows(site.path(run_id), *chosen)

    def show(change: int | None, page: float | None, *chosen: Any) -> tuple[Any, ...]:
        """Show the page that is `change` pages further, or the first one (None)."""
        number = 1 if change is None else int(page or 1) + change
        return _screen(site.path(chosen[0]), read(*chosen), number)

    def show_row(page: float | None, number: float | None, *chosen: Any) -> tuple[Any, ...]:
        index = (int(page or 1) - 1) * _PAGE_ROWS + int(number or 1) - 1
        return _row_screen(read(*chosen)[index : index + 1])

    inputs, outputs = [page, *filters], [page, gallery, note, number, *row_screen]
    for component in filters:
        connect(component.change, functools.partial(show, None), inputs, outputs)
    for event, change in (
        (tab.select, 0), (page.submit, 0), (previous.click, -1), (following.click, 1),
    ):  # fmt: skip
        connect(event, functools.partial(show, change), inputs, outputs)
    connect(gallery.select, widgets.picked_number, None, [number])
    connect(number.change, show_row, [page, number, *filters], row_screen)
    if not site.home.is_shared:
        _build_check()


def _filters() -> list[gr.Component]:
    with gr.Row():
        return [
            gr.Dropdown(list(samples.SOURCES), label="Rows", elem_id="data-source", min_width=200),
            gr.Dropdown([ALL, *wording.QUESTIONS], label="Question kind"),
            gr.Dropdown([ALL, *map(str, range(2, 7))], label="Number of digits"),
            gr.Dropdown([ALL, CORRECT, WITH_ERRORS], label="Demonstration"),
            gr.Slider(50, 4000, value=4000, step=50, label="Maximum length (characters)"),
        ]


def _screen(path: Path, rows: list[samples.Row], page: int) -> tuple[Any, ...]:
    """Return a page of the rows that pass the filters, and its first row."""
    num_pages = max(1, -(-len(rows) // _PAGE_ROWS))
    page = min(max(1, page), num_pages)
    shown = rows[(page - 1) * _PAGE_ROWS : page * _PAGE_ROWS]
    pictures = [
        (picture_file(row.sample.pictures[0].open()), html.question(row.sample.question))
        for row in shown
        if row.sample.pictures
    ]
    text = f"{len(rows):,} rows, page {page} of {num_pages}."
    num_wrong = sum(bool(row.errors) for row in rows)
    if num_wrong:
        text += f" {num_wrong:,} demonstrations have errors ({num_wrong / len(rows):.0%})."
    if folder.read_config(path)["data"]["task"] == "digits":
        text += f" Pictures: {ATTRIBUTION}."
    if not rows:
        text = "No row passes these filters: relax one of them."
    return page, pictures, html.note(text), 1, *_row_screen(shown[:1])


def _row_screen(rows: list[samples.Row]) -> tuple[Any, ...]:
    """Return the note and the completions of one row, or of none."""
    if not rows:
        return "", html.NO_COMPLETION, html.NO_COMPLETION
    sample, errors = rows[0].sample, rows[0].errors
    gold = "none" if sample.answer is None else sample.answer
    cells = [html.question(sample.question), f"gold answer: {gold}"]
    cells += [f"errors in the demonstration: {errors}"] if errors else []
    completions = (sample.demonstration, sample.teacher)
    spans = (html.part_spans(text) if text else html.NO_COMPLETION for text in completions)
    return html.note(" · ".join(cells)), *spans


def _build_check() -> None:
    """Lay out the check of a file. Not for guests: its rows may name files of this machine."""
    gr.HTML("<h3>Check your own file</h3>")
    with gr.Row():
        with gr.Column(min_width=260):
            upload = gr.File(
                label="A file of rows, at most 10 MiB", height=170,
                file_types=[*FILE_TYPES], elem_id="data-file",
            )  # fmt: skip
            stages = [_ANY_STAGE, "sft", "warmup", "align", "rlvr", "eval"]
            stage = gr.Dropdown(stages, label="Fields required by", elem_id="data-stage")
            button = gr.Button("Check", variant="primary", elem_id="check")
        with gr.Column(scale=2, min_width=280):
            text = (
                "Upload a file of rows to see its format and every defect with its row and how to fix it. "
                "For large files and pictures on disk: prism-lite data check PATH."
            )
            summary = gr.HTML(html.note(text), elem_id="check-summary")
            first = gr.Textbox(
                label="First row of each stage as prism_lite reads it", lines=4, interactive=False
            )
    findings = widgets.table(
        "findings", headers=["row", "kind", "what is wrong"], wrap=True, max_height=360
    )
    outputs = [summary, first, findings]
    button.click(_check_file, [upload, stage], outputs, api_name="check", concurrency_limit=1)


@errors_on_page()
def _check_file(path: str | None, stage: str) -> tuple[Any, ...]:
    """Return summary, first sample and findings of the check of an uploaded file."""
    if not path:
        raise ValueError("no file yet: upload one first.")
    if Path(path).suffix.lower() not in FILE_TYPES:
        raise ValueError(f"{Path(path).name}: expected a file of type {', '.join(FILE_TYPES)}.")
    check_decoded_size(Path(path))
    report = _check(Path(path), stage=None if stage == _ANY_STAGE else stage)
    table = [
        [finding.row or "file", finding.kind, finding.message.replace(path, Path(path).name)]
        for finding in report.findings[:_MAX_SHOWN_FINDINGS]
    ]
    return _summary(report, Path(path)), report.first_sample, table or None


def check_summary(path: Path, columns: str) -> tuple[str, str]:
    """Check a file as a training reads it; return a note with its defects, and the first rows.

    Args:
        columns: as the setting data.columns, or "".

    Raises:
        ValueError: the columns are not a mapping of our names to the file's.
    """
    mapping = column_map(columns) if columns and columns.strip() else None
    report = _check(path, columns=mapping)
    shown = "".join(
        html.note(_for_the_page(finding.message), tone="warn")
        for finding in report.findings[:_MAX_SHOWN_HERE]
    )
    num_more = sum(report.counts.values()) - len(report.findings[:_MAX_SHOWN_HERE])
    if num_more > 0:
        shown += html.note(f"{num_more:,} more: prism-lite data check {path}", tone="warn")
    return _summary(report, path) + shown, report.first_sample


def _for_the_page(message: str) -> str:
    """Return a message of the check with what to do on this page in place of settings."""
    message = re.sub(r"data\.columns='(\{.*?\})'", r"\1 under 2 Columns", message)
    return message.replace("; set image_root", "; put it there")


def _check(
    path: Path, *, stage: str | None = None, columns: Mapping[str, str] | None = None
) -> Report:
    from prism_lite.data.checks.check import CheckRules, check  # slow to import

    rules = CheckRules() if stage is None else CheckRules(stage=stage)  # pyright: ignore
    return check(path, rules=rules, columns=columns, limit=_MAX_CHECKED_ROWS)


def _summary(report: Report, path: Path) -> str:
    from prism_lite.data.formats.detect import MEANINGS

    form = f"format “{MEANINGS[report.convention]}”" if report.convention else "not readable"
    counts = ", ".join(f"{kind} {num}" for kind, num in sorted(report.counts.items()))
    text = (
        f"{path.name}: {form}, {report.num_rows:,} rows read, "
        f"{report.num_clean:,} clean. {f'Rejected: {counts}.' if counts else 'No defects.'}"
    )
    text += "".join(f" Note: {note}." for note in report.notes)
    return html.note(text, tone="good" if report.ok else "warn")
