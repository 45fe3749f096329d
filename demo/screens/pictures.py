"""Write each picture of a page once, under a name that is a hash of its content.

Gradio would write a PIL image again, to the same file, for every visitor, and whoever is downloading that
file would get only a part of it. The files are in Gradio's upload folder and are deleted with it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tempfile
from pathlib import Path

from gradio.utils import get_upload_folder
from PIL import Image

LOSSLESS_PIXELS = 2**16  # a strip of digits is shown enlarged: each of its pixels counts
_INLINE_SIDE = 480  # of a picture inside HTML


def picture_file(image: Image.Image | None) -> str | None:
    """Return the path of an RGB image for a component, None for no picture."""
    if image is None:
        return None
    name = hashlib.sha256(image.tobytes() + repr((image.size, image.mode)).encode()).hexdigest()
    path = Path(get_upload_folder()).resolve() / "pictures" / f"{name}.webp"
    if path.is_file():
        os.utime(path)  # Gradio deletes old files
        return str(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    is_small = image.width * image.height <= LOSSLESS_PIXELS
    handle, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".unfinished")
    with os.fdopen(handle, "wb") as file:
        image.save(file, "WEBP", lossless=is_small, quality=90)
    os.replace(unfinished, path)
    return str(path)


def titled_picture(title: str, image: Image.Image | None) -> str:
    """Return a picture below its title, "" for no picture."""
    if image is None:
        return ""
    return f'<figure class="titled-picture"><figcaption>{title}</figcaption>{picture_html(image)}</figure>'


def picture_html(image: Image.Image) -> str:
    """Return an <img> that contains the picture, made smaller if it is large."""
    small = image.copy()
    small.thumbnail((_INLINE_SIDE, _INLINE_SIDE))
    buffer = io.BytesIO()
    is_small = small.width * small.height <= LOSSLESS_PIXELS
    small.save(buffer, "WEBP", lossless=is_small, quality=90)
    source = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img src="data:image/webp;base64,{source}" alt="the picture that the model sees">'
