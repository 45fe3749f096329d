"""Convert a visitor's picture to the format that the tiny model knows: 8 x 8 digits side by side.

As in the digits data (UCI, with NIST's preprocessing), each digit is cut out, scaled to a height of 32
pixels, centered, converted to black and white, and counted in blocks of 4 x 4 pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from prism_lite.digits.task import DIGIT_PIXELS
from prism_lite.pixels import read_rgb

MAX_UPLOAD_BYTES = 10 * 2**20
_MAX_PIXELS = 12_000_000  # of an uploaded picture, checked before it is decoded
_MIN_INK_PIXELS = 12  # smaller specks are ignored
_GAP_SHARE = 0.012  # of the width: strokes closer than this belong to one digit
CELLS, BLOCK = 8, 4


def open_upload(path: str | Path) -> Image.Image:
    """Return an uploaded picture as upright RGB pixels, without metadata.

    Raises:
        ValueError: too many bytes, too many pixels, or not a readable picture.
    """
    data = Path(path).read_bytes()
    if len(data) > MAX_UPLOAD_BYTES:
        raise ValueError(
            f"the picture has {len(data) / 2**20:.1f} MiB; at most {MAX_UPLOAD_BYTES >> 20} are accepted. "
            "Make it smaller and try again."
        )
    return read_rgb(data, Path(path).name, max_pixels=_MAX_PIXELS)


def strip_of(image: Image.Image, *, min_digits: int, max_digits: int) -> tuple[Image.Image, int]:
    """Convert a drawing to a strip as `digits.task.strip_image` renders it.

    Args:
        image: dark ink on light paper or light on dark; digits side by side with gaps between them.

    Returns:
        The strip, white on black, 32 x 32 pixels per digit, and the number of digits.

    Raises:
        ValueError: nothing is drawn, or the model was not trained on this number of digits.
    """
    is_ink_HW = _ink(image)
    if is_ink_HW.sum() < _MIN_INK_PIXELS:
        raise ValueError(
            f"nothing is drawn yet: write {min_digits} to {max_digits} digits side by side."
        )
    digits = [_eight_by_eight(is_ink_HW[:, left:right]) for left, right in _columns(is_ink_HW)]
    if not min_digits <= len(digits) <= max_digits:
        raise ValueError(
            f"found {len(digits)} digit{'s' * (len(digits) != 1)} (strokes with a gap between them); "
            f"the tiny model was trained on {min_digits} to {max_digits}. Leave clear gaps between "
            "digits and none within one."
        )
    row = np.concatenate(digits, axis=1).astype(np.uint16)
    side = DIGIT_PIXELS // CELLS
    pixels = np.kron(np.minimum(row * 16, 255), np.ones((side, side))).astype(np.uint8)
    return Image.fromarray(pixels).convert("RGB"), len(digits)


def _ink(image: Image.Image) -> np.ndarray:
    """Return bool [H, W], True where the pen was: the less common of the two tones."""
    gray = np.asarray(image.convert("L"), dtype=np.float32)
    low, high = float(gray.min()), float(gray.max())
    if high - low < 24:  # a blank sheet
        return np.zeros(gray.shape, dtype=bool)
    is_light = gray > (low + high) / 2
    return ~is_light if is_light.mean() >= 0.5 else is_light


def _columns(is_ink_HW: np.ndarray) -> list[tuple[int, int]]:
    """Return the first column of each digit and the one after its last, from left to right."""
    columns = np.flatnonzero(is_ink_HW.any(axis=0))
    gap = max(2, round(_GAP_SHARE * is_ink_HW.shape[1]))
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > gap) + 1)
    spans = [(int(group[0]), int(group[-1]) + 1) for group in groups]
    return [(a, b) for a, b in spans if is_ink_HW[:, a:b].sum() >= _MIN_INK_PIXELS]


def _eight_by_eight(is_ink_HW: np.ndarray) -> np.ndarray:
    """Return one digit as uint8 [8, 8] in 0..16: the number of ink pixels in each block."""
    rows = np.flatnonzero(is_ink_HW.any(axis=1))
    cut = is_ink_HW[rows[0] : rows[-1] + 1]
    scale = DIGIT_PIXELS / max(cut.shape)
    height, width = (max(1, min(DIGIT_PIXELS, round(scale * length))) for length in cut.shape)
    scaled = Image.fromarray((cut * 255).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BOX
    )
    sheet = np.zeros((DIGIT_PIXELS, DIGIT_PIXELS), dtype=bool)
    top, left = (DIGIT_PIXELS - height) // 2, (DIGIT_PIXELS - width) // 2
    sheet[top : top + height, left : left + width] = np.asarray(scaled) >= 128
    return sheet.reshape(CELLS, BLOCK, CELLS, BLOCK).sum(axis=(1, 3)).astype(np.uint8)
