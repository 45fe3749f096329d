"""From a person's drawing to the picture that the tiny model knows: 8 x 8 digits side by side.

As the digits data was made (UCI, NIST's preprocessing): each digit is cut out, scaled to fill 32 pixels
of height, centred, turned into black and white, and counted in blocks of 4 x 4 pixels.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from prism_lite.digits.task import DIGIT_PIXELS

MAX_UPLOAD_BYTES = 10 * 2**20
MAX_PIXELS = 12_000_000  # of an uploaded picture, before it is decoded
MIN_INK_PIXELS = 12  # a run of ink smaller than this is a slip of the pen
GAP_SHARE = 0.012  # of the width: strokes nearer than this belong to one digit
CELLS, BLOCK = 8, 4


def open_upload(path: str | Path) -> Image.Image:
    """An uploaded picture as plain RGB pixels: no metadata, turned upright.

    Raises:
        ValueError: too many bytes, too many pixels, or no readable picture.
    """
    data = Path(path).read_bytes()
    if len(data) > MAX_UPLOAD_BYTES:
        raise ValueError(
            f"the picture has {len(data) / 2**20:.1f} MiB; at most {MAX_UPLOAD_BYTES >> 20} are taken. "
            "Make it smaller and try again."
        )
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"the picture has {image.width} x {image.height} pixels; at most "
                    f"{MAX_PIXELS / 1e6:.0f} million are taken. Scale it down and try again."
                )
            upright = ImageOps.exif_transpose(image)
            flat = Image.new("RGB", upright.size, "white")  # transparent pixels count as paper
            with_alpha = upright.convert("RGBA")
            flat.paste(with_alpha, mask=with_alpha.getchannel("A"))
            return flat
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            "this file cannot be read as a picture: it is damaged or of another kind. Give a PNG or "
            "JPEG."
        ) from error


def strip_of(image: Image.Image, *, min_digits: int, max_digits: int) -> tuple[Image.Image, int]:
    """The drawing as a strip in the format of `data.digits.strip_image`.

    Args:
        image: dark ink on light paper, or light on dark; digits side by side with gaps between.

    Returns:
        The strip, white on black, 32 pixels high and 32 a digit; and the number of digits.

    Raises:
        ValueError: nothing is drawn, or another number of digits than the model has learned.
    """
    is_ink_HW = _ink(image)
    if is_ink_HW.sum() < MIN_INK_PIXELS:
        raise ValueError(
            f"nothing is drawn yet: write {min_digits} to {max_digits} digits side by side."
        )
    digits = [_eight_by_eight(is_ink_HW[:, left:right]) for left, right in _runs(is_ink_HW)]
    if not min_digits <= len(digits) <= max_digits:
        raise ValueError(
            f"found {len(digits)} digit{'s' * (len(digits) != 1)} (strokes with a gap between them); "
            f"the tiny model has learned {min_digits} to {max_digits}. Leave clear gaps between "
            "digits and none inside one."
        )
    row = np.concatenate(digits, axis=1).astype(np.uint16)
    side = DIGIT_PIXELS // CELLS
    pixels = np.kron(np.minimum(row * 16, 255), np.ones((side, side))).astype(np.uint8)
    return Image.fromarray(pixels).convert("RGB"), len(digits)


def _ink(image: Image.Image) -> np.ndarray:
    """bool [H, W], True where the pen was: whatever differs from the paper, the commoner tone."""
    grey = np.asarray(image.convert("L"), dtype=np.float32)
    low, high = float(grey.min()), float(grey.max())
    if high - low < 24:  # an even sheet
        return np.zeros(grey.shape, dtype=bool)
    is_light = grey > (low + high) / 2
    return ~is_light if is_light.mean() >= 0.5 else is_light


def _runs(is_ink_HW: np.ndarray) -> list[tuple[int, int]]:
    """Columns from..to of each digit, left to right; specks are dropped."""
    columns = np.flatnonzero(is_ink_HW.any(axis=0))
    gap = max(2, round(GAP_SHARE * is_ink_HW.shape[1]))
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > gap) + 1)
    runs = [(int(group[0]), int(group[-1]) + 1) for group in groups]
    return [(a, b) for a, b in runs if is_ink_HW[:, a:b].sum() >= MIN_INK_PIXELS]


def _eight_by_eight(is_ink_HW: np.ndarray) -> np.ndarray:
    """One digit as uint8 [8, 8] in 0..16: how many pixels of each block are ink."""
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
