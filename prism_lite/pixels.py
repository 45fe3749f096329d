"""Decode pictures: one function for training, evaluation, chat and the demo.

What a viewer shows is what the model gets:
- EXIF orientation is applied; sizes are those after it.
- Transparent pixels become white.
- Pictures with more than 8 bits per channel (16-bit, 32-bit and floating-point gray) are scaled to 0..255:
  values within 0..255 are kept (floating-point values within 0..1 are multiplied by 255), any others are
  stretched linearly from the picture's own minimum and maximum to 0 and 255.
- The first frame of an animation counts.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

T = TypeVar("T")
PictureSource = Path | bytes | Image.Image

# Others that Pillow knows start programs (EPS), hold no pixels or are never data.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 40_000_000

_ORIENTATION = 0x0112  # EXIF tag
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise for damaged files.
_PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, EOFError,
    RuntimeError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def read_rgb(source: PictureSource, name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a picture as upright RGB pixels (see above), independent of its file.

    Args:
        source: a file, encoded bytes, or an image in memory.
        name: names the picture in messages.
        max_pixels: larger pictures are refused before they are decoded.

    Raises:
        ValueError: missing, damaged, too large, or of a format that is not in FORMATS.
    """

    def decode(image: Image.Image) -> Image.Image | None:
        if image.width * image.height > max_pixels:
            return None
        transpose = _TRANSPOSE.get(_orientation(image))
        rgb = to_rgb(image)
        rgb = rgb if transpose is None else rgb.transpose(transpose)
        rgb.info.clear()  # or the orientation would be applied again
        return rgb

    image = _use(source, name, decode)
    if image is None:
        width, height = read_size(source, name)
        raise ValueError(
            f"picture {name} has {width} x {height} pixels; at most {max_pixels / 1e6:g} million are "
            "decoded: scale it down."
        )
    return image


def read_size(source: PictureSource, name: str) -> tuple[int, int]:
    """Return width and height of the upright picture from its header; raise as `read_rgb`."""

    def size(image: Image.Image) -> tuple[int, int]:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)

    return _use(source, name, size)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB: deep gray scaled, transparent pixels white."""
    if image.mode.startswith(("I", "F")):
        return _scaled(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    sheet = Image.new("RGB", image.size, "white")
    sheet.paste(layer, mask=layer.getchannel("A"))
    return sheet


def _scaled(image: Image.Image) -> Image.Image:
    pixels_HW = np.asarray(image).astype(np.float64)
    finite = pixels_HW[np.isfinite(pixels_HW)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    if image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    pixels_HW = np.nan_to_num(pixels_HW, nan=low, posinf=high, neginf=low)
    scaled_HW = (pixels_HW - low) * (255 / (high - low)) if high > low else pixels_HW * 0
    return Image.fromarray(scaled_HW.round().astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that Pillow has not applied itself; 1 is upright."""
    # Pillow applies it to TIFF. For PNG without it in the header, `getexif` would decode all pixels.
    if image.format == "TIFF" or (
        image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys()
    ):
        return 1
    orientation = image.getexif().get(_ORIENTATION, 1)
    return orientation if orientation in _TRANSPOSE else 1


def _use(source: PictureSource, name: str, use: Callable[[Image.Image], T]) -> T:
    """Apply a function to the opened picture; its errors become one sentence with the name."""
    try:
        if isinstance(source, Image.Image):
            return use(source)
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(stream, formats=_registered_formats()) as image:
            return use(image)
    except _PILLOW_ERRORS as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"it is damaged or not one of {', '.join(FORMATS)}"
        raise ValueError(
            f"cannot read picture {name}: {reason}. Check that the path is right and that the file is "
            "undamaged (`prism-lite data check` lists all such rows)."
        ) from error


def _registered_formats() -> tuple[str, ...]:
    Image.init()  # Pillow may be built without some of them
    return tuple(name for name in FORMATS if name in Image.OPEN)
