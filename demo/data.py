"""Tab Data: what a run was trained on, and a check of one's own file before training on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from demo import folder, rows, view
from demo.site import Site, in_words
from prism_lite.data import wording
from prism_lite.data.digits import ATTRIBUTION

PAGE_ROWS = 12
MAX_CHECKED_ROWS = 10_000
MAX_SHOWN_FINDINGS = 200
FILE_TYPES = [".jsonl", ".json", ".csv", ".tsv", ".parquet"]
ALL_SIZES = "any number of digits"


def build(site: Site, page: gr.Blocks, run: gr.Dropdown) -> None:
    """Lay out the tab and wire it."""
    with gr.Row():
        source = gr.Dropdown(
            list(rows.SOURCES), value="SFT demonstrations", label="Rows", elem_id="data-source"
        )
        kind = gr.Dropdown(["all", *wording.QUESTIONS], value="all", label="Question kind")
        size = gr.Dropdown([ALL_SIZES, *map(str, range(2, 7))], value=ALL_SIZES, label="Difficulty")
        slips = gr.Dropdown(
            ["all", "clean", "with a slip"], value="all", label="Demonstration", elem_id="slips"
        )
        longest = gr.Slider(50, 4000, value=4000, step=50, label="At most this many characters")
    with gr.Row():
        earlier = gr.Button("Earlier rows", elem_id="earlier", min_width=120)
        number = gr.Number(1, label="Page", precision=0, minimum=1, min_width=90, elem_id="page")
        later = gr.Button("Later rows", elem_id="later", min_width=120)
    count = gr.HTML(elem_id="data-count")
    gallery = gr.Gallery(
        label="Pictures and questions", columns=4, height=330, object_fit="contain", buttons=[],
        allow_preview=False, elem_id="data-gallery", interactive=False,
    )  # fmt: skip
    about = gr.HTML(elem_id="row-about")
    with gr.Row():
        demonstration = gr.HighlightedText(
            label="Demonstration (SFT imitates it)", color_map=view.PART_COLORS, min_width=280,
            show_whitespaces=True, elem_classes="completion", elem_id="demonstration",
        )  # fmt: skip
        teacher = gr.HighlightedText(
            label="Teacher (alignment compares with it)", color_map=view.PART_COLORS,
            min_width=280, show_whitespaces=True, elem_classes="completion", elem_id="teacher",
        )  # fmt: skip
    hidden: dict[str, Any] = {
        "queue": False, "show_progress": "hidden", "api_visibility": "private",
    }  # fmt: skip
    filters = [run, source, kind, size, slips, longest]

    def found_rows(
        run_id: str, chosen: str, kind_: str, size_: str, slips_: str, longest_: float
    ) -> list[rows.Row]:
        return rows.filtered(
            site.path(run_id),
            chosen,
            kind=kind_,
            difficulty=0 if size_ == ALL_SIZES else int(size_),
            slips=slips_,
            longest=int(longest_),
        )

    def show(page_number: float, *chosen: Any) -> tuple[Any, ...]:
        found = found_rows(*chosen)
        last = max(1, -(-len(found) // PAGE_ROWS))
        current = min(max(1, int(page_number or 1)), last)
        shown = found[(current - 1) * PAGE_ROWS : current * PAGE_ROWS]
        pictures = [
            (row.sample.pictures[0].open(), row.sample.question)
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
        return current, pictures, view.note(text), *_row_screen(shown[0] if shown else None)

    def turn(by: int) -> Any:
        return lambda page_number, *chosen: show((page_number or 1) + by, *chosen)

    def pick(event: gr.SelectData, page_number: float, *chosen: Any) -> tuple[Any, ...]:
        found = found_rows(*chosen)
        place = (int(page_number) - 1) * PAGE_ROWS + event.index
        return _row_screen(found[place] if place < len(found) else None)

    row_outputs = [about, demonstration, teacher]
    outputs = [number, gallery, count, *row_outputs]
    gr.on(
        [page.load, *(component.change for component in filters)],
        in_words(lambda *chosen: show(1, *chosen)),
        filters,
        outputs,
        **hidden,
    )
    number.submit(in_words(show), [number, *filters], outputs, **hidden)
    earlier.click(in_words(turn(-1)), [number, *filters], outputs, **hidden)
    later.click(in_words(turn(+1)), [number, *filters], outputs, **hidden)
    gallery.select(in_words(pick), [number, *filters], row_outputs, **hidden)
    if not site.home.is_shared:
        _build_check()


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
                view.note(
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
    from prism_lite.data.doctor import CheckRules, check

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
    return view.note(text, kind="good" if report.ok else "warn"), report.first_sample, table or None


def _row_screen(row: rows.Row | None) -> tuple[Any, ...]:
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
        view.note(" · ".join(cells)),
        view.part_spans(sample.demonstration) if sample.demonstration else None,
        view.part_spans(sample.teacher) if sample.teacher else None,
    )
