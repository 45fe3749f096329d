"""Drawings and uploads: what the model sees of them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.models import drawing
from prism_lite.digits.task import digit_images, strip_image

SAMPLES = (0, 21, 46, 300, 1001)


def sheet_of(indices: tuple[int, ...], *, scale: int = 20, gap: int = 60) -> Image.Image:
    """Render digits of the data as a visitor draws them: large, dark on white, with gaps."""
    images, _ = digit_images()
    cells = []
    for i in indices:
        smooth = Image.fromarray((images[i] * 15).astype(np.uint8)).resize(
            (8 * scale, 8 * scale), Image.Resampling.BICUBIC
        )
        cell = np.pad(np.asarray(smooth), ((30, 30), (gap, gap)))
        cells.append(np.where(cell > 120, 0, 255).astype(np.uint8))
    return Image.fromarray(np.concatenate(cells, axis=1)).convert("RGB")


def test_a_drawn_digit_looks_like_the_data_it_was_drawn_from() -> None:
    strip, num = drawing.strip_of(sheet_of(SAMPLES[:3]), min_digits=3, max_digits=4)
    assert num == 3 and strip.size == strip_image(SAMPLES[:3]).size
    for place, index in enumerate(SAMPLES[:3]):
        box = (32 * place, 0, 32 * place + 32, 32)
        ours = np.asarray(strip.crop(box).convert("L"), dtype=float)[::4, ::4]
        theirs = np.asarray(strip_image((index,)).convert("L"), dtype=float)[::4, ::4]
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.8


def test_light_ink_on_dark_paper_is_the_same_drawing() -> None:
    sheet = sheet_of(SAMPLES[:3])
    negative = Image.fromarray(255 - np.asarray(sheet))
    a, _ = drawing.strip_of(sheet, min_digits=3, max_digits=4)
    b, _ = drawing.strip_of(negative, min_digits=3, max_digits=4)
    assert np.array_equal(np.asarray(a), np.asarray(b))


def test_cells_count_ink_in_sixteenths() -> None:
    sheet = Image.new("L", (200, 100), 255)
    sheet.paste(0, (90, 10, 100, 90))  # an upright bar, an eighth as wide as it is high
    strip, num = drawing.strip_of(sheet, min_digits=1, max_digits=2)
    cells = np.asarray(strip.convert("L"))[::4, ::4]
    assert num == 1
    assert cells.tolist() == [[0, 0, 0, 128, 128, 0, 0, 0]] * 8  # half of two cells, all the way


@pytest.mark.parametrize(
    ("sheet", "words"),
    [
        (Image.new("RGB", (640, 200), "white"), "nothing is drawn"),
        (sheet_of(SAMPLES[:2]), "found 2 digits"),
        (sheet_of(SAMPLES), "found 5 digits"),
    ],
)
def test_wrong_numbers_of_digits_are_refused(sheet: Image.Image, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        drawing.strip_of(sheet, min_digits=3, max_digits=4)


def test_a_corrupt_picture_is_refused_in_words(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    sheet_of(SAMPLES[:3]).save(good)
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:200])
    for path in (bad, _with(tmp_path / "text.png", b"no picture at all")):
        with pytest.raises(ValueError, match=f"cannot read picture {path.name}"):
            drawing.open_upload(path)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    Image.new("1", (40_000, 40_000)).save(bomb)
    assert bomb.stat().st_size < drawing.MAX_UPLOAD_BYTES
    with pytest.raises(ValueError, match=r"million|exceeds limit"):
        drawing.open_upload(bomb)


def test_too_many_bytes_are_refused(tmp_path: Path) -> None:
    big = _with(tmp_path / "big.png", bytes(drawing.MAX_UPLOAD_BYTES + 1))
    with pytest.raises(ValueError, match="at most 10"):
        drawing.open_upload(big)


def test_metadata_is_dropped_and_the_picture_turned_upright(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter
    exif[0x010E] = "a secret place"
    Image.new("RGB", (40, 20), "white").save(path, exif=exif)
    opened = drawing.open_upload(path)
    assert opened.size == (20, 40)
    assert not opened.getexif() and "exif" not in opened.info


def test_transparent_pixels_are_paper(tmp_path: Path) -> None:
    path = tmp_path / "clear.png"
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(path)
    assert drawing.open_upload(path).getpixel((5, 5)) == (255, 255, 255)


def _with(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
