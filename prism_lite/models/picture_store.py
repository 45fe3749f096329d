"""Picture features on disk, for later runs: one safetensors file per picture, up to a total size.

The folder is named by the vision tower and the preprocessing of pictures, so features of another tower are
never read. A file's name is a hash of the picture's content and its pixel limits.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from prism_lite.models.prompts import pixel_limits
from prism_lite.types import Picture


class PictureStore:
    """Named tensors of pictures under `folder`; the least recently read files are deleted first."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))

    def load(self, name: str, device: torch.device) -> dict[str, torch.Tensor] | None:
        """Read a picture's tensors, or return None if they are not stored.

        Raises:
            RuntimeError: the file is damaged.
        """
        path = self.folder / f"{name}.safetensors"
        try:
            tensors = load_file(path, device=str(device))
            os.utime(path)
        except FileNotFoundError:  # never stored, or another run has just deleted it
            return None
        except SafetensorError as error:
            raise RuntimeError(f"{path} is damaged ({error}); delete it.") from error
        return tensors

    def save(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Write a picture's tensors atomically; then delete old files down to the size."""
        path = self.folder / f"{name}.safetensors"
        handle, unfinished = tempfile.mkstemp(dir=self.folder, suffix=".unfinished")
        os.close(handle)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, unfinished)
        os.replace(unfinished, path)
        self._num_bytes += path.stat().st_size
        if self._num_bytes > self.max_bytes:
            self._delete_oldest()

    def _delete_oldest(self) -> None:
        files = [(path.stat(), path) for path in self.folder.glob("*.safetensors")]
        files.sort(key=lambda file: file[0].st_mtime_ns)
        self._num_bytes = sum(stat.st_size for stat, _ in files)
        for stat, path in files:
            if self._num_bytes <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            self._num_bytes -= stat.st_size


def picture_name(picture: Picture, image_processor: Any) -> str:
    """Hash what the features depend on: the pixels and how they are resized.

    A file counts as unchanged while its size and modification time are.
    """
    digest = hashlib.sha256(repr(pixel_limits(picture, image_processor)).encode())
    source = picture.source
    if isinstance(source, Image.Image):
        digest.update(repr((source.size, source.mode)).encode())
        digest.update(source.tobytes())
    elif isinstance(source, bytes):
        digest.update(source)
    else:
        stat = source.stat()
        digest.update(repr((str(source.resolve()), stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()


def tower_name(tower: torch.nn.Module, image_processor: Any) -> str:
    """Hash the vision tower's weights and the image processor's settings."""
    digest = hashlib.sha256(image_processor.to_json_string().encode())
    for chunk in _weight_bytes(tower):
        digest.update(chunk)
    return digest.hexdigest()[:32]


def _weight_bytes(tower: torch.nn.Module) -> Iterator[memoryview]:
    for name, tensor in tower.state_dict().items():
        yield memoryview(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        yield memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
