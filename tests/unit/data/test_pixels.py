"""Pictures of every mode are decoded as a viewer shows them; damaged ones are one sentence."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from prism_lite.pixels import read_rgb
from prism_lite.types import Picture

FIELD = Path(__file__).parents[2] / "fixtures" / "field"
SIZE = (24, 12)


def encode(image: Image.Image, format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def ink_mask() -> Image.Image:
    """Return an alpha channel: opaque in the left half."""
    mask = Image.new("L", SIZE, 0)
    mask.paste(255, (0, 0, SIZE[0] // 2, SIZE[1]))
    return mask


def _transparent(kind: str) -> bytes:
    black = Image.new("L", SIZE, 0)
    if kind == "LA":
        return encode(Image.merge("LA", (black, ink_mask())), "PNG")
    rgba = Image.merge("RGBA", (black, black, black, ink_mask()))
    if kind in ("PNG", "WEBP", "TIFF"):
        return encode(rgba, kind, **({"lossless": True} if kind == "WEBP" else {}))
    palette = Image.new("P", SIZE, 1)
    palette.putpalette([0, 0, 0, 0, 0, 0])
    palette.paste(0, (0, 0, SIZE[0] // 2, SIZE[1]))
    if kind == "palette":
        return encode(palette, "PNG", transparency=1)
    if kind == "GIF":
        return encode(palette, "GIF", transparency=1)
    assert kind == "colour key"
    gray = Image.new("L", SIZE, 9)
    gray.paste(0, (0, 0, SIZE[0] // 2, SIZE[1]))
    return encode(gray, "PNG", transparency=9)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "LA", "palette", "GIF", "colour key"])
def test_transparent_pixels_are_white(kind):
    pixels_HWC = np.asarray(Picture("x", _transparent(kind)).open())
    assert (pixels_HWC[:, : SIZE[0] // 2] == 0).all()
    assert (pixels_HWC[:, SIZE[0] // 2 :] == 255).all()


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[1000, 2000, 3000]], np.uint16), [0, 128, 255]),  # its own range
        (np.array([[0, 32768, 65535]], np.uint16), [0, 128, 255]),
        (np.array([[0, 100, 255]], np.uint16), [0, 100, 255]),  # 8-bit values stay
        (np.array([[0, 100_000, 400_000]], np.int32), [0, 64, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, np.nan, np.inf]], np.float32), [0, 0, 255]),
        (np.array([[700, 700, 700]], np.uint16), [0, 0, 0]),
    ],
)
def test_deep_gray_is_scaled(pixels, expected):
    image = Image.fromarray(pixels)
    sources = [image, encode(image, "TIFF")]
    if pixels.dtype == np.uint16:
        sources.append(encode(image, "PNG"))
    for source in sources:
        opened = Picture("x", source).open()
        assert opened.mode == "RGB"
        assert np.asarray(opened)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(format, orientation):
    ramp = np.linspace(0, 255, SIZE[0] * SIZE[1]).reshape(SIZE[::-1]).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(ramp).convert("RGB")
    content = encode(image, format, exif=exif)
    picture = Picture("x", content)
    with Image.open(io.BytesIO(content)) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    assert picture.size == picture.open().size == expected.size
    assert picture.open().tobytes() == expected.tobytes()
    again = Picture("y", picture.open())
    assert again.open().tobytes() == expected.tobytes()


def test_field_pictures():
    turned = Picture("exif6", FIELD / "exif6.jpg")
    assert turned.size == turned.open().size == (64, 128)
    ink = np.asarray(Picture("ink", FIELD / "transparent_black_ink.png").open())
    assert ink.mean() > 200 and ink.min() < 20
    deep = np.asarray(Picture("deep", FIELD / "sixteen_bit.png").open())
    assert (deep.min(), deep.max()) == (0, 255) and 100 < deep.mean() < 156


class TestErrors:
    def test_pixel_limit(self):
        content = encode(Image.new("1", (8000, 8000)), "PNG")
        with pytest.raises(ValueError, match=r"picture big has 8000 x 8000 pixels; at most 40"):
            Picture("big", content).open()
        assert Picture("big", content).size == (8000, 8000)
        with pytest.raises(ValueError, match="exceeds limit"):
            read_rgb(encode(Image.new("1", (20_000, 20_000)), "PNG"), "bomb")

    def test_formats_that_start_programs_are_refused(self):
        content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
        with pytest.raises(ValueError, match=r"picture x: it is damaged or not one of PNG"):
            Picture("x", content).open()

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
    def test_damaged_files_are_one_sentence(self, format):
        rng = np.random.default_rng(0)
        whole = encode(Image.effect_noise((40, 30), 60).convert("RGB"), format)
        for _ in range(40):
            content = bytearray(whole[: rng.integers(1, len(whole))])
            for place in rng.integers(0, len(content), 3):
                content[place] = rng.integers(0, 256)
            try:
                picture = Picture("torn", bytes(content))
                assert picture.size == picture.open().size
            except ValueError as error:
                assert "torn" in str(error)

    def test_missing_file(self):
        with pytest.raises(ValueError, match="cannot read picture gone"):
            Picture("gone", Path("gone.png")).open()
