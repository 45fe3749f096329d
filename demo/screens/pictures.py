"""Pictures on their way to a page: each is written once, whole, under a name made of its content.

Gradio would write a PIL image anew, into the same file, for every visitor who is shown it, and whoever
is fetching that file meanwhile gets a part of it (the server logs "Too little data for declared
Content-Length"). The files lie in Gradio's own folder, which drops them with the uploads.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from pathlib import Path

from gradio.utils import get_upload_folder
from PIL import Image

LOSSLESS_PIXELS = 2**16  # a strip of digits is shown enlarged: each of its pixels counts


def picture_file(image: Image.Image | None) -> str | None:
    """The path to give to a component; None for no picture.

    Args:
        image: RGB.
    """
    if image is None:
        return None
    name = hashlib.sha256(image.tobytes() + repr((image.size, image.mode)).encode()).hexdigest()
    path = Path(get_upload_folder()).resolve() / "pictures" / f"{name}.webp"
    if path.is_file():
        os.utime(path)  # the folder is cleared by age
        return str(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with io.BytesIO() as data:
        is_small = image.width * image.height <= LOSSLESS_PIXELS
        image.save(data, "WEBP", lossless=is_small, quality=90)
        handle, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".unfinished")
        with os.fdopen(handle, "wb") as file:
            file.write(data.getvalue())
    os.replace(unfinished, path)
    return str(path)
