"""Picture files for the page have the right pixels and are written once."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from demo.screens.pictures import LOSSLESS_PIXELS, picture_file


@pytest.fixture(autouse=True)
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return tmp_path


def strip(color: str = "white") -> Image.Image:
    image = Image.new("RGB", (128, 32), "black")
    image.paste(color, (3, 5, 20, 9))
    return image


def test_the_pixels_of_a_strip_are_kept(uploads: Path) -> None:
    file = picture_file(strip())
    assert file is not None and Path(file).is_relative_to(uploads.resolve())
    with Image.open(file) as image:
        assert image.convert("RGB").tobytes() == strip().tobytes()


def test_a_picture_shown_again_is_not_written_again() -> None:
    """A visitor who is downloading it would get only a part."""
    file = picture_file(strip())
    assert file is not None
    before = Path(file).stat().st_ino
    with Path(file).open("rb") as being_sent:
        again, other = picture_file(strip()), picture_file(strip("red"))
        content = being_sent.read()
    assert again == file != other
    assert Path(file).stat().st_ino == before and Path(file).read_bytes() == content
    assert not list(Path(file).parent.glob("*.unfinished"))


def test_a_deleted_file_is_written_again() -> None:
    file = picture_file(strip())
    assert file is not None
    Path(file).unlink()
    assert picture_file(strip()) == file and Path(file).is_file()


def test_a_photo_is_sent_small() -> None:
    side = int(LOSSLESS_PIXELS**0.5) * 2
    photo = Image.effect_noise((side, side), 40).convert("RGB")
    file = picture_file(photo)
    assert file is not None and Path(file).stat().st_size < side * side
    with Image.open(file) as image:
        assert image.size == photo.size


def test_no_picture_has_no_file() -> None:
    assert picture_file(None) is None
