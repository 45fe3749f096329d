"""The embedded task: strips of real handwritten digits with questions about them.

Pictures: the 1,797 handwritten digits of UCI's optical recognition set (E. Alpaydin, C. Kaynak, 1998,
CC BY 4.0; the 8 x 8 ones that scikit-learn ships), in `digits.npz` in their original order. That order
keeps the thirteen writers together: each block starts with 0..9 three times. Training pictures
come from the first ten writers, held-out ones from the last three.

Two sources of completions: `demonstration` is like a public data set, with a systematic misreading
(`DigitsConfig.drift`) and slips of reasoning; `teacher` is a procedure of high fidelity with varied
wording; both verified exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
from PIL import Image

from prism_lite.config import DigitsConfig, Kind
from prism_lite.digits import wording
from prism_lite.digits.wording import DigitsFacts
from prism_lite.parts import Parts
from prism_lite.types import Picture, ProbePair, Sample, Turn

Split = Literal["train", "heldout"]
Misread = Callable[[tuple[int, ...], Random], tuple[int, ...]]
HELDOUT_FROM = 1415  # first picture of the eleventh writer
DIGIT_PIXELS = 32  # one digit fills one visual token: 2 x 2 patches of 16 pixels
# How often each wording is used: three of a caption, two of a think.
_DEMONSTRATION_WORDINGS = ((0.4, 0.35, 0.25), (0.55, 0.45))
_TEACHER_WORDINGS = ((0.25, 0.4, 0.35), (0.45, 0.55))
ATTRIBUTION = "UCI Optical Recognition of Handwritten Digits (Alpaydin, Kaynak 1998), CC BY 4.0"


@cache
def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """Load all pictures and labels: uint8 [1797, 8, 8] in 0..16, uint8 [1797]."""
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as archive:
        return archive["images"], archive["labels"]


def strip_image(indices: tuple[int, ...]) -> Image.Image:
    """Draw the digits side by side, each enlarged to 32 x 32 pixels, white on black."""
    images, _ = digit_images()
    row = np.concatenate([images[i] for i in indices], axis=1)
    pixels = np.kron(np.minimum(row.astype(np.uint16) * 16, 255), np.ones((4, 4))).astype(np.uint8)
    return Image.fromarray(pixels).convert("RGB")


def make_samples(
    config: DigitsConfig, *, split: Split, kinds: Sequence[Kind], num: int, seed: str
) -> list[Sample]:
    """Draw prompts with gold answer, demonstration and teacher completion.

    Args:
        split: which writers' pictures.
        kinds: which questions are asked.
        num: how many samples.
        seed: names the draw; the same name gives the same samples.
    """
    _, labels = digit_images()
    pool = range(HELDOUT_FROM) if split == "train" else range(HELDOUT_FROM, len(labels))
    misread_public = wording.misread if config.drift == "random" else _misread_all
    rng = Random(f"digits {seed}")
    # Generators of their own: the prompts, and what the other source writes, do not depend on rates.
    demonstration_rng = Random(f"digits {seed} demonstrations")
    teacher_rng = Random(f"digits {seed} teacher")
    samples = []
    for row in range(num):
        num_digits = rng.randint(config.min_digits, config.max_digits)
        indices = tuple(rng.choice(pool) for _ in range(num_digits))
        digits = tuple(int(labels[i]) for i in indices)
        facts = DigitsFacts(digits, rng.choice(kinds), pivot=rng.randint(3, 6))
        path = wording.steps(digits, facts)
        demonstration = _write(
            facts,
            config.demonstration_misread_rate,
            config.demonstration_slip_rate,
            _DEMONSTRATION_WORDINGS,
            demonstration_rng,
            misread=misread_public,
        )
        teacher = _write(
            facts,
            config.teacher_misread_rate,
            config.teacher_slip_rate,
            _TEACHER_WORDINGS,
            teacher_rng,
        )
        samples.append(
            Sample(
                id=f"{split}-{seed}-{row}",
                turns=(Turn("user", facts.question),),
                pictures=(Picture("digits-" + "-".join(map(str, indices)), strip_image(indices)),),
                answer=wording.answer_text(facts, path),
                demonstration=demonstration.render(),
                teacher=teacher.render(),
                facts=facts,
                source=f"digits {split} {row}",
            )
        )
    return samples


def probe_pairs(config: DigitsConfig, *, num: int, rng: Random) -> list[ProbePair]:
    """Draw held-out prompts with clean teacher parts and the same ones corrupted.

    A corrupted caption has the drift's own misreading, so every picture has a digit that it changes.
    """
    misread = wording.misread if config.drift == "random" else _misread_all
    pairs: list[ProbePair] = []
    for sample in make_samples(
        config, split="heldout", kinds=config.kinds, num=4 * num, seed="probe"
    ):
        clean = _write(sample.facts, 0.0, 0.0, _TEACHER_WORDINGS, rng)
        corrupted = corrupt(sample, clean, rng, misread=misread)
        if corrupted is not None and corrupted.caption != clean.caption and len(pairs) < num:
            pairs.append(ProbePair(sample, clean, corrupted))
    return pairs


def corrupt(
    sample: Sample, parts: Parts, rng: Random, *, misread: Misread = wording.misread
) -> Parts | None:
    """Misread the caption and slip one step in the reasoning, in the same wording.

    Args:
        misread: default: one digit becomes one that looks alike.

    Returns:
        The corrupted parts; None where `parts` are not those of the true digits.
    """
    facts: DigitsFacts = sample.facts
    caption_style = _style_of(
        parts.caption, wording.NUM_CAPTION_STYLES, facts, wording.caption_text
    )
    path = wording.steps(facts.digits, facts)
    clean_thinks = [
        wording.think_text(facts.digits, facts, path, style)
        for style in range(wording.NUM_THINK_STYLES)
    ]
    if caption_style is None or parts.think not in clean_thinks:
        return None
    wrong_path = wording.slip(facts.digits, facts, path, rng)
    return Parts(
        caption=wording.caption_text(misread(facts.digits, rng), caption_style),
        think=wording.think_text(facts.digits, facts, wrong_path, clean_thinks.index(parts.think)),
        answer=wording.answer_text(facts, wrong_path),
    )


def _write(
    facts: DigitsFacts,
    misread_rate: float,
    slip_rate: float,
    wordings: tuple[Sequence[float], Sequence[float]],
    rng: Random,
    *,
    misread: Misread = wording.misread,
) -> Parts:
    """Write a completion, perhaps misread or with a slip of reasoning."""
    caption_weights, think_weights = wordings
    caption_style = rng.choices(range(wording.NUM_CAPTION_STYLES), caption_weights)[0]
    think_style = rng.choices(range(wording.NUM_THINK_STYLES), think_weights)[0]
    digits = facts.digits if rng.random() >= misread_rate else misread(facts.digits, rng)
    path = wording.steps(digits, facts)
    if rng.random() < slip_rate:
        path = wording.slip(digits, facts, path, rng)
    return wording.compose(digits, facts, path, caption_style, think_style)


def _misread_all(digits: tuple[int, ...], _rng: Random) -> tuple[int, ...]:
    return wording.misread_all(digits)


def _style_of(text: str, num_styles: int, facts: DigitsFacts, render) -> int | None:
    return next((s for s in range(num_styles) if render(facts.digits, s) == text), None)
