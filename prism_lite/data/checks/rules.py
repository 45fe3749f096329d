"""What `data check` looks for in one readable row; the readers have refused the unreadable ones."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import Image

from prism_lite import parts
from prism_lite.rewards.answers.choices import parse_choice
from prism_lite.rewards.answers.compare import compare_answers
from prism_lite.rewards.answers.text import clean, word_form
from prism_lite.types import Picture, Sample

Stage = Literal["sft", "warmup", "align", "rlvr", "eval"]
Defect = tuple[str, str]  # kind, message


@dataclass(frozen=True)
class CheckRules:
    """Limits and demands of a check.

    Attributes:
        stage: what the rows are for; it decides which fields must be there. None asks for none.
        rows_of_other_stages: rows without the stage's field are none of its business, not defects.
        max_pixels: larger pictures are refused (they cost memory long before the processor scales).
        min_side: of a picture, in pixels.
        max_aspect_ratio: long side over short side; Qwen-VL processors refuse more than 200.
        max_prompt_tokens: with `num_tokens`, longer prompts are refused; None checks no length.
        num_tokens: tokens of a sample's prompt, picture tokens included.
        max_answer_characters: a longer gold answer cannot be verified by comparison.
        check_pictures: look at the pictures; off where that was done before.
        decode_pictures: read all pixels, which finds cut files; else only their headers.
    """

    stage: Stage | None = None
    rows_of_other_stages: bool = False
    max_pixels: int = 40_000_000
    min_side: int = 8
    max_aspect_ratio: float = 200.0
    max_prompt_tokens: int | None = None
    num_tokens: Callable[[Sample], int] | None = field(default=None, repr=False)
    max_answer_characters: int = 400
    check_pictures: bool = True
    decode_pictures: bool = True


_NO_ANSWER = frozenset(
    {"n/a", "na", "nan", "none", "null", "unknown", "?", "-", "--", "tbd", "todo", "undefined"}
)
_SPECIAL_TOKEN = re.compile(r"<\|[a-z_]+\|>")
_TAG = re.compile(r"</?(?:caption|think|answer)>")


def defects_of(sample: Sample, rules: CheckRules) -> Iterator[Defect]:
    """Every defect of a sample, as kind and message."""
    if not rules.rows_of_other_stages:
        yield from _missing_fields(sample, rules.stage)
    yield from _text_defects(sample)
    yield from _answer_defects(sample, rules)
    yield from _completion_defects(sample, rules.stage)
    for picture in sample.pictures if rules.check_pictures else ():
        yield from picture_defects(picture, rules)
    if rules.max_prompt_tokens is not None and rules.num_tokens is not None:
        num_tokens = rules.num_tokens(sample)
        if num_tokens > rules.max_prompt_tokens:
            hint = " (pictures are never cut)" if sample.pictures else ""
            yield (
                "prompt_too_long",
                f"the prompt has {num_tokens} tokens, the limit is "
                f"{rules.max_prompt_tokens}{hint}; shorten it, shrink its pictures or raise the "
                "limit.",
            )


def _missing_fields(sample: Sample, stage: Stage | None) -> Iterator[Defect]:
    needs = {
        "sft": ("demonstration",),
        "warmup": ("teacher",),  # the student may be sampled
        "align": ("teacher",),
        "rlvr": ("answer",),
        "eval": ("answer",),
    }
    for name in needs[stage] if stage else ():
        if getattr(sample, name) is None:
            yield f"missing_{name}", f"the {stage} stage needs a {name}; the row has none."


def _text_defects(sample: Sample) -> Iterator[Defect]:
    texts = {f"turn {i}": turn.text for i, turn in enumerate(sample.turns, start=1)}
    for name in ("demonstration", "teacher", "student", "answer"):
        text = getattr(sample, name)
        if text is not None:
            texts[name] = text
    for name, text in texts.items():
        if "\ufffd" in text:
            yield (
                "broken_characters",
                f"{name} holds replacement characters; decode the source anew.",
            )
        if "\0" in text:
            yield "broken_characters", f"{name} holds a zero byte; remove it."
        special = _SPECIAL_TOKEN.search(text)
        if special:
            yield (
                "special_token",
                f"{name} holds the special token {special.group()}; it would end or fake a turn: "
                "remove it.",
            )
        if not name.startswith("turn") and "<image>" in text:
            yield (
                "mark_in_completion",
                f"{name} holds an <image> mark; pictures stand in prompts only.",
            )


def _answer_defects(sample: Sample, rules: CheckRules) -> Iterator[Defect]:
    if sample.answer is None:
        return
    answer = clean(sample.answer)
    if not answer:
        yield "empty_answer", "the answer is empty; write it or drop the row."
        return
    if answer.casefold() in _NO_ANSWER and not sample.choices:
        yield "unverifiable_answer", f"the answer {answer!r} says that there is none; drop the row."
    elif len(answer) > rules.max_answer_characters:
        yield (
            "unverifiable_answer",
            f"the answer has {len(answer)} characters (limit {rules.max_answer_characters}); no "
            "comparison can verify it: shorten it or use it for SFT only.",
        )
    if sample.choices:
        choice = parse_choice(answer)
        is_letter = choice is not None and ord(choice.letter) - ord("A") < len(sample.choices)
        if not is_letter and not any(
            compare_answers(option, answer).matches for option in sample.choices
        ):
            yield (
                "answer_not_in_choices",
                f"the answer {answer[:60]!r} is none of the {len(sample.choices)} options.",
            )


def _completion_defects(sample: Sample, stage: Stage | None) -> Iterator[Defect]:
    for name in ("demonstration", "teacher", "student"):
        text = getattr(sample, name)
        if text is None:
            continue
        if not text.strip():
            yield f"empty_{name}", f"the {name} is empty; write it or drop the row."
            continue
        is_for_it = stage in ("warmup", "align") or (name == "demonstration" and stage == "sft")
        found = parts.parse(text)
        if isinstance(found, parts.Malformed):
            # Without a stage, plain demonstrations are fine; half a triple never is.
            if is_for_it or _TAG.search(text):
                yield (
                    f"malformed_{name}",
                    f"the {name} is not caption, think, answer once each: {found.reason}.",
                )
            continue
        if name != "student" and sample.answer is not None and clean(sample.answer):
            golds = (sample.answer, *sample.accepted)
            verdict = compare_answers(found.answer, golds, choices=sample.choices)
            if not verdict.matches:
                yield (
                    f"wrong_{name}",
                    f"the {name} answers {found.answer[:60]!r}, the gold answer is "
                    f"{sample.answer[:60]!r} ({verdict.why}).",
                )
    if sample.teacher and sample.teacher == sample.student:
        yield "same_pair", "teacher and student are the same text; the pair teaches nothing."


def picture_defects(picture: Picture, rules: CheckRules) -> Iterator[Defect]:
    """Every defect of a picture, whatever its row says."""
    decode_up_to = rules.max_pixels if rules.decode_pictures else 0
    if isinstance(picture.source, Path):
        problem, width, height = _inspect_path(picture.source, decode_up_to)
    else:
        problem, width, height = _inspect(picture, decode_up_to)
    name = picture.id if isinstance(picture.source, Path) else "the embedded picture"
    if problem:
        yield (
            "unreadable_picture",
            f"{name} cannot be read ({problem}); replace it or drop the row.",
        )
        return
    if width * height > rules.max_pixels:
        yield (
            "oversized_picture",
            f"{name} has {width} x {height} pixels, more than {rules.max_pixels}; scale it down.",
        )
    if min(width, height) < rules.min_side:
        yield "tiny_picture", f"{name} has {width} x {height} pixels; nothing can be read from it."
    if max(width, height) > rules.max_aspect_ratio * min(width, height):
        yield (
            "aspect_ratio",
            f"{name} has {width} x {height} pixels, an aspect ratio above "
            f"{rules.max_aspect_ratio:g}, which the processor refuses; crop it.",
        )


@lru_cache(maxsize=65536)
def _inspect_path(path: Path, decode_up_to: int) -> tuple[str, int, int]:
    # Rows often share pictures: each file is opened once.
    return _inspect(Picture(str(path), path), decode_up_to)


def _inspect(picture: Picture, decode_up_to: int) -> tuple[str, int, int]:
    """What is wrong with a picture (empty if nothing), its width and height.

    The header is read first: a picture of more than `decode_up_to` pixels is never decoded.
    """
    source = picture.source
    if isinstance(source, Image.Image):
        return "", *source.size
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            width, height = image.size
            if width * height <= decode_up_to:
                image.load()
            return "", width, height
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"{type(error).__name__}: {str(error)[:120]}", 0, 0


def row_key(sample: Sample) -> bytes:
    """Equal for rows that say the same: prompt, pictures, answer and completions."""
    digest = hashlib.blake2b(digest_size=12)
    for text in (
        *(f"{turn.role}:{turn.text}" for turn in sample.turns),
        *(picture.id for picture in sample.pictures),
        *(repr(getattr(sample, n)) for n in ("answer", "demonstration", "teacher", "student")),
    ):
        digest.update(text.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.digest()


def prompt_key(sample: Sample) -> bytes:
    """Equal for rows that ask the same of the same pictures, whatever their paths and spacing
    are.
    """
    digest = hashlib.blake2b(digest_size=12)
    question = word_form(" ".join(sample.question.replace("<image>", " ").split()))
    digest.update(question.encode("utf-8", "surrogatepass"))
    for picture in sample.pictures:
        digest.update(_content_key(picture))
    return digest.digest()


def _content_key(picture: Picture) -> bytes:
    if isinstance(picture.source, Path):
        return _file_key(picture.source)
    if isinstance(picture.source, bytes):
        return hashlib.blake2b(picture.source, digest_size=12).digest()
    return hashlib.blake2b(picture.source.tobytes(), digest_size=12).digest()


@lru_cache(maxsize=65536)
def _file_key(path: Path) -> bytes:
    if not path.is_file():
        return str(path).encode()
    return hashlib.blake2b(path.read_bytes(), digest_size=12).digest()
