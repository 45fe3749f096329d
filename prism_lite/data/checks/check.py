"""`prism-lite data check PATH`: every defect of a data file before step 0, with row numbers.

A row is clean or it is not: training refuses or skips exactly the rows named here. `--fix OUT` writes
the clean rows to OUT and the others, with their reasons, beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from prism_lite.config import BoxesConfig
from prism_lite.data.checks.boxes import System, ask_for_boxes, fitting_systems
from prism_lite.data.checks.keys import prompt_key, row_key
from prism_lite.data.checks.rules import CheckRules, find_defects, has_unknown_letter, stages_of
from prism_lite.data.formats.base import FileError, Finding
from prism_lite.data.formats.load import SampleFile, load_samples, plural_rows, render_sample
from prism_lite.types import Sample

MAX_KEPT_PER_KIND = 200  # findings with text; the counts are exact


@dataclass(frozen=True)
class Report:
    """Result of a check.

    Attributes:
        path: as given.
        convention: detected format, "" where the file could not be opened.
        num_rows, num_clean: all rows and those without a finding.
        counts: findings by kind; a row may have several.
        findings: in file order, at most MAX_KEPT_PER_KIND of a kind.
        first_sample: the first row of each stage, rendered; "" where no row is readable.
        notes: what the user should know of the file although it is not a defect.
        by_stage: rows that each stage of training can read.
    """

    path: str
    convention: str
    num_rows: int
    num_clean: int
    counts: Mapping[str, int]
    findings: tuple[Finding, ...] = field(repr=False)
    first_sample: str = field(default="", repr=False)
    notes: tuple[str, ...] = ()
    by_stage: Mapping[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.counts


def check(
    path: str | Path,
    *,
    rules: CheckRules | None = None,
    columns: Mapping[str, str] | None = None,
    image_root: str | None = None,
    eval_path: str | Path | None = None,
    limit: int | None = None,
) -> Report:
    """Read every row of a file and report its defects; never raise for what the file holds.

    Args:
        path: as for `load_samples`.
        rules: limits and the stage whose fields are demanded. Where they do not say how boxes are
            written and the file asks for boxes, they must be corners in pixels.
        columns, image_root, limit: as for `load_samples`.
        eval_path: rows that ask the same of the same pictures as one of this file are reported.

    Raises:
        ValueError: the evaluation file or the column map cannot be used.
    """
    rules, overlap = rules or CheckRules(), prompt_keys(eval_path, image_root=image_root)
    counts: Counter[str] = Counter()
    kept: list[Finding] = []
    num_rows = num_clean = 0
    convention = ""
    notes: list[str] = []
    num_unusable = num_letters = 0
    first_of: dict[str, Sample] = {}
    by_stage: Counter[str] = Counter()
    first_places: dict[bytes, str] = {}
    try:
        opened = load_samples(path, columns=columns, image_root=image_root, limit=limit)
        convention = opened.convention
        rules = with_boxes(rules, opened)
        systems: frozenset[System] | None = None  # unit and form that all boxes so far fit
        for _, sample in opened.rows():
            if isinstance(sample, Sample):
                stages = stages_of(sample)
                num_unusable += sample.demonstration is not None and "sft" not in stages
                num_letters += bool(sample.pictures) and has_unknown_letter(sample)
                by_stage.update(stages)
                for stage in stages or ("no stage",):
                    first_of.setdefault(stage, sample)
            findings = check_row(sample, rules, first_places, overlap=overlap)
            if rules.boxes is not None and isinstance(sample, Sample):
                fitting = fitting_systems(sample)
                common = fitting if systems is None else systems & fitting
                if fitting and not common:  # said of the first such row
                    findings.append(_mixed_boxes(sample, fitting))
                systems = common or systems
            num_rows += 1
            num_clean += not findings
            for finding in findings:
                counts[finding.kind] += 1
                if counts[finding.kind] <= MAX_KEPT_PER_KIND:
                    kept.append(finding)
        notes = opened.notes.lines()
    except FileError as error:  # not readable, or broken after some rows
        counts[error.kind] += 1
        kept.append(Finding("", 0, error.kind, str(error)))
    notes += _notes_of_rows(num_letters, num_unusable)
    return Report(
        str(path),
        convention,
        num_rows,
        num_clean,
        counts,
        tuple(kept),
        _rendered(first_of),
        tuple(notes),
        by_stage,
    )


def _notes_of_rows(num_letters: int, num_unusable: int) -> list[str]:
    """Return what the user should know of rows that are not defects."""
    notes = []
    if num_letters:
        notes.append(
            f"the answers of {plural_rows(num_letters)} are letters of options that no text lists: right "
            "only if the pictures show them"
        )
    if num_unusable:
        notes.append(
            f"the responses of {plural_rows(num_unusable)} are not caption, think, answer: SFT cannot use "
            "them (sft.steps=0 skips it), RLVR uses the answers"
        )
    return notes


def _rendered(first_of: Mapping[str, Sample]) -> str:
    """Render the first row of each stage; a row that is the first of several is shown once."""
    stages_by_row: dict[str, list[str]] = {}
    for stage, sample in first_of.items():
        stages_by_row.setdefault(sample.key, []).append(stage)
    samples = {sample.key: sample for sample in first_of.values()}
    if len(samples) > 1:
        stages_by_row = {k: v for k, v in stages_by_row.items() if v != ["no stage"]}
    return "\n\n".join(
        f"first row of {', '.join(stages)} ({samples[key].source}):\n{render_sample(samples[key])}"
        for key, stages in stages_by_row.items()
    )


def with_boxes(rules: CheckRules, opened: SampleFile) -> CheckRules:
    """Return rules under which boxes are corners in pixels, where the file asks for boxes.

    Rules that say how boxes are written are returned as they are.
    """
    if rules.boxes is None and ask_for_boxes(sample for _, sample in opened.rows()):
        return replace(rules, boxes=BoxesConfig(unit="pixels"))
    return rules


def _mixed_boxes(sample: Sample, fitting: frozenset[System]) -> Finding:
    systems = " or ".join(f"{unit}, {form}" for unit, form in sorted(fitting))
    return Finding(
        sample.file,
        sample.row,
        "mixed_boxes",
        f"{sample.source}: its boxes are {systems}, and those of the rows before it are not: write "
        "all boxes of a file in one unit and form.",
    )


def check_row(
    sample: Sample | Finding,
    rules: CheckRules,
    first_places: dict[bytes, str],
    *,
    overlap: frozenset[bytes] = frozenset(),
) -> list[Finding]:
    """Return the defects of one row of `SampleFile.rows`, none for a clean one.

    Args:
        sample: the row, or why it has no sample.
        rules: limits and the stage whose fields are demanded.
        first_places: keys of the rows before this one and where they are; the row's own are added.
        overlap: `prompt_keys` of the evaluation file.
    """
    if isinstance(sample, Finding):
        return [sample]
    defects = list(find_defects(sample, rules))
    key = row_key(sample)
    if key in first_places:
        message = f"the same as {first_places[key]}; drop one of the two."
        defects.append(("duplicate_row", message))
    first_places.setdefault(key, sample.source)
    if overlap and prompt_key(sample) in overlap:
        message = "the same question and pictures as an evaluation row; drop it."
        defects.append(("eval_overlap", message))
    return [
        Finding(sample.file, sample.row, kind, f"{sample.source}: {message}")
        for kind, message in defects
    ]


def prompt_keys(eval_path: str | Path | None, *, image_root: str | None = None) -> frozenset[bytes]:
    """Return the keys of evaluation rows, whose prompts no training row may have.

    Raises:
        ValueError: the file or one of its rows cannot be read.
    """
    if eval_path is None:
        return frozenset()
    return frozenset(map(prompt_key, load_samples(eval_path, image_root=image_root)))
