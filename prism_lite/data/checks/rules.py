"""What `data check` looks for in one readable row; the readers have refused the unreadable ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from prism_lite import parts
from prism_lite.config import BoxesConfig
from prism_lite.data.checks.boxes import box_defects
from prism_lite.pixels import MAX_PIXELS
from prism_lite.rewards.answers.choices import options_in, parse_choice
from prism_lite.rewards.answers.compare import compare_answers
from prism_lite.rewards.answers.text import clean
from prism_lite.rewards.boxes import says_no_box
from prism_lite.types import STAGES, Picture, Sample, Stage

DataStage = Stage | Literal["eval"]
Defect = tuple[str, str]  # kind and message; the caller adds file and row

NEEDED_FIELDS: dict[DataStage, str] = {
    "sft": "demonstration",
    "warmup": "teacher",  # the student may be sampled
    "align": "teacher",
    "rlvr": "answer",
    "eval": "answer",
}
_COMPLETIONS = ("demonstration", "teacher", "student")
# What each stage reads beside the prompt: nothing else of a row is checked for it.
_READ_FIELDS: dict[DataStage, tuple[str, ...]] = {
    "sft": ("demonstration",),
    "control": ("answer",),
    "warmup": ("teacher", "student"),
    "align": ("teacher",),
    "rlvr": ("answer",),
    "eval": ("answer",),
}
_NO_ANSWER = frozenset(
    {"n/a", "na", "nan", "none", "null", "unknown", "?", "-", "--", "tbd", "todo", "undefined"}
)
_SPECIAL_TOKEN = re.compile(r"<\|[a-z_]+\|>")
_TAG = re.compile(r"</?(?:caption|think|answer)>")
_ANSWER_PART = re.compile(r"<answer>.*?</answer>", re.DOTALL)


@dataclass(frozen=True)
class CheckRules:
    """Limits and demands of a check.

    Attributes:
        stage: what the rows are for; it decides which field they need. None demands none.
        also_read: fields that the run's settings make the stage read beside its own.
        rows_of_other_stages: rows without the stage's field are for other stages, not defects.
        max_pixels: larger pictures are refused (they cost memory long before the processor scales).
        min_side: of a picture, in pixels.
        max_aspect_ratio: long side over short side; Qwen-VL processors refuse more than 200.
        max_prompt_tokens: with `num_tokens`, longer prompts are refused; None checks no length.
        num_tokens: counts the tokens of a sample's prompt, picture tokens included.
        max_answer_characters: a longer gold answer cannot be verified by comparison.
        check_pictures: look at the pictures; off where that was done before.
        decode_pictures: read all pixels, which finds truncated files; else only their headers.
        boxes: unit and form of the gold boxes, in rows that have boxes as answers; "none" is an
            answer there. None: answers are not boxes.
    """

    stage: DataStage | None = None
    also_read: tuple[str, ...] = ()
    rows_of_other_stages: bool = False
    max_pixels: int = MAX_PIXELS
    min_side: int = 8
    max_aspect_ratio: float = 200.0
    max_prompt_tokens: int | None = None
    num_tokens: Callable[[Sample], int] | None = field(default=None, repr=False)
    max_answer_characters: int = 400
    check_pictures: bool = True
    decode_pictures: bool = True
    boxes: BoxesConfig | None = None


def find_defects(sample: Sample, rules: CheckRules) -> Iterator[Defect]:
    """Yield every defect of a sample that the stage would meet; without a stage, that some stage would."""
    needed = NEEDED_FIELDS[rules.stage] if rules.stage and not rules.rows_of_other_stages else None
    if needed and getattr(sample, needed) is None:
        yield f"missing_{needed}", f"the {rules.stage} stage needs a {needed}; the row has none."
    read = (
        (*_READ_FIELDS[rules.stage], *rules.also_read) if rules.stage else (*_COMPLETIONS, "answer")
    )
    yield from _text_defects(sample, read)
    if "answer" in read:
        yield from _answer_defects(sample, rules)
    names = [name for name in _COMPLETIONS if name in read]
    defects = [defect for name in names for defect in _completion_defects(sample, name, rules)]
    for number in range(1, len(sample.teachers)) if "teacher" in names else ():
        defects += _completion_defects(sample.with_teacher(number), "teacher", rules)
    yield from defects
    if not rules.stage and not defects and sample.answer is None and not stages_of(sample):
        yield (
            "missing_answer",
            "the row has no answer, demonstration or teacher completion that a stage can use: name the "
            "column with data.columns.",
        )
    for picture in sample.pictures if rules.check_pictures else ():
        yield from picture_defects(picture, rules)
    if rules.max_prompt_tokens is not None and rules.num_tokens is not None:
        num_tokens = rules.num_tokens(sample)
        if num_tokens > rules.max_prompt_tokens:
            hint = " (pictures are never cut)" if sample.pictures else ""
            yield (
                "prompt_too_long",
                f"the prompt has {num_tokens} tokens, the limit is {rules.max_prompt_tokens}{hint}; "
                "shorten it, shrink its pictures or raise the limit.",
            )


def is_read_by(sample: Sample, stage: DataStage, needed: str) -> bool:
    """Return whether a stage of a run reads a row: it has the field, more than the bare answer for SFT."""
    value = getattr(sample, needed)
    if stage == "sft" and value and sample.answer is not None:
        return bool(_ANSWER_PART.sub("", value).strip()) and value.strip() != sample.answer
    return value is not None


def stages_of(sample: Sample) -> tuple[Stage, ...]:
    """Return the stages that can train on a row."""

    def has(name: str) -> bool:
        texts = sample.teachers if name == "teacher" else (getattr(sample, name),)
        return bool(texts) and all(isinstance(parts.parse(t or ""), parts.Parts) for t in texts)

    usable = {
        "sft": has("demonstration"),
        "warmup": has("teacher") and has("student"),
        "align": has("teacher"),
        "rlvr": bool(sample.answer),
    }
    return tuple(stage for stage in STAGES if usable[stage])


def _text_defects(sample: Sample, read: Collection[str]) -> Iterator[Defect]:
    texts = {f"turn {i}": turn.text for i, turn in enumerate(sample.turns, start=1)}
    texts |= {name: getattr(sample, name) or "" for name in read}
    if "teacher" in read:
        texts |= {f"teacher {i}": text for i, text in enumerate(sample.other_teachers, start=2)}
    for name, text in texts.items():
        if "\ufffd" in text:
            message = f"{name} holds replacement characters; decode the source again."
            yield "broken_characters", message
        if "\0" in text:
            yield "broken_characters", f"{name} holds a zero byte; remove it."
        token = _SPECIAL_TOKEN.search(text)
        if token:
            message = f"{name} holds the special token {token[0]}; it would end or fake a turn: remove it."
            yield "special_token", message
        if not name.startswith("turn") and "<image>" in text:
            message = f"{name} holds an <image> mark; only prompts have pictures."
            yield "mark_in_completion", message


def _answer_defects(sample: Sample, rules: CheckRules) -> Iterator[Defect]:
    if sample.answer is None:
        return
    answer = clean(sample.answer)
    if not answer:
        yield "empty_answer", "the answer is empty; write it or drop the row."
        return
    if rules.boxes is not None:
        yield from box_defects(sample, rules.boxes)
    is_missing = answer.casefold() in _NO_ANSWER and not sample.choices
    if is_missing and not (rules.boxes is not None and says_no_box(answer)):
        yield "unverifiable_answer", f"the answer {answer!r} says that there is none; drop the row."
    elif len(answer) > rules.max_answer_characters:
        yield (
            "unverifiable_answer",
            f"the answer has {len(answer)} characters (limit {rules.max_answer_characters}); no "
            "comparison can verify it: shorten it or use it for SFT only.",
        )
    if not sample.pictures and has_unknown_letter(sample):
        yield (
            "missing_choices",
            f"the answer {answer!r} is the letter of an option and the prompt has no options: give them in "
            "the column choices.",
        )
    if sample.choices:
        choice = parse_choice(answer)
        is_letter = choice is not None and ord(choice.letter) - ord("A") < len(sample.choices)
        if not is_letter and not any(
            compare_answers(option, answer).matches for option in sample.choices
        ):
            message = f"the answer {answer[:60]!r} is none of the {len(sample.choices)} options."
            yield "answer_not_in_choices", message


def has_unknown_letter(sample: Sample) -> bool:
    """Return whether the answer is an option's letter and the prompt's text lists no options."""
    if (
        sample.choices
        or sample.answer is None
        or not re.fullmatch(r"\(?[A-E]\)?\.?", sample.answer.strip())
    ):
        return False
    names_letters = re.search(r"\bA\b.*\bB\b", sample.question, re.DOTALL)
    return not names_letters and not options_in(sample.question)


def _completion_defects(sample: Sample, name: str, rules: CheckRules) -> Iterator[Defect]:
    text = getattr(sample, name)
    if text is None:
        return
    if not text.strip():
        yield f"empty_{name}", f"the {name} is empty; write it or drop the row."
        return
    parsed = parts.parse(text)
    if isinstance(parsed, parts.Malformed):
        # Without a stage, a row with an answer may have a response of another form, but never half a
        # triple.
        if rules.stage or "caption>" in text or not stages_of(sample):
            yield (
                f"malformed_{name}",
                f"the {name} is not caption, think, answer once each: {parsed.reason}."
                f"{_way_on(sample, name)}",
            )
    elif name != "student" and sample.answer is not None and clean(sample.answer):
        golds = (sample.answer, *sample.accepted)
        verdict = compare_answers(parsed.answer, golds, choices=sample.choices)
        if not verdict.matches:
            yield (
                f"wrong_{name}",
                f"the {name} answers {parsed.answer[:60]!r}, the gold answer is "
                f"{sample.answer[:60]!r} ({verdict.why}).",
            )
    if name == "teacher" and sample.teacher == sample.student:
        yield "same_pair", "teacher and student are the same text; the pair teaches nothing."


def _way_on(sample: Sample, name: str) -> str:
    """Return how to train without a completion that cannot be used."""
    if name == "demonstration":
        if sample.answer:
            return " Train without SFT (sft.steps=0): RLVR needs the answer alone; or add what is missing."
        return " Add what is missing, or skip such rows with data.on_bad_row=skip."
    return " Leave such rows out with data.on_bad_row=skip, or skip the stage (align.steps=0)."


def picture_defects(picture: Picture, rules: CheckRules) -> Iterator[Defect]:
    """Yield every defect of a picture, whatever its row says."""
    max_decoded = rules.max_pixels if rules.decode_pictures else 0
    if isinstance(picture.source, Path):
        name = picture.id
        problem, width, height = _inspect_path(picture.source, max_decoded)
    else:
        name = "the embedded picture"
        problem, width, height = _inspect(picture, max_decoded)
    if problem:
        message = f"{name} cannot be read ({problem}); replace it or drop the row."
        yield "unreadable_picture", message
        return
    size = f"{name} has {width} x {height} pixels"
    if width * height > rules.max_pixels:
        yield "oversized_picture", f"{size}, more than {rules.max_pixels}; scale it down."
    if min(width, height) < rules.min_side:
        yield "tiny_picture", f"{size}; nothing can be read from it."
    if max(width, height) > rules.max_aspect_ratio * min(width, height):
        yield (
            "aspect_ratio",
            f"{size}, an aspect ratio above {rules.max_aspect_ratio:g}, which the processor refuses; "
            "crop it.",
        )


@lru_cache(maxsize=65536)
def _inspect_path(path: Path, max_decoded: int) -> tuple[str, int, int]:
    # Rows often share pictures: each file is opened once.
    return _inspect(Picture(str(path), path), max_decoded)


def _inspect(picture: Picture, max_decoded: int) -> tuple[str, int, int]:
    """Return what is wrong with a picture ("" if nothing), its width and its height.

    The header is read first: a picture of more than `max_decoded` pixels is never decoded.
    """
    try:
        width, height = picture.size
        if width * height <= max_decoded:
            picture.open()
    except ValueError as error:
        return str(error.__cause__ or error)[:120], 0, 0
    return "", width, height
