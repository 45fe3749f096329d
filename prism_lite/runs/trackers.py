"""TensorBoard, trackio and W&B beside metrics.jsonl, through accelerate's trackers."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from prism_lite.config import RunConfig
from prism_lite.files import write_text
from prism_lite.recipe import to_dict


def check_trackers(config: RunConfig) -> None:
    """Check that the packages named in `track` are installed, before anything is written.

    Raises:
        ValueError: one is not installed.
    """
    for name in config.track:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"track = {name}: the package {error.name} is not installed: pip install "
                "'prism-lite[track]', or leave it out (metrics.jsonl is written in any case)."
            ) from error


@contextmanager
def open_trackers(config: RunConfig, folder: Path) -> Iterator[list[Any]]:
    """Start accelerate's trackers of a run, log the settings, and finish the trackers at the end.

    TensorBoard writes to `folder`/tensorboard; the others name their project after the recipe. A
    resumed run continues its W&B run, whose id is kept in the folder.
    """
    if not config.track:
        yield []
        return
    from accelerate import PartialState, tracking

    PartialState()  # the trackers ask it which process is the main one
    with ExitStack() as stack:
        trackers: list[Any] = []
        for name in config.track:
            tracker_type = tracking.LOGGER_TYPE_TO_CLASS[name]
            if name == "tensorboard":
                tracker = tracker_type(name, folder)
            elif name == "wandb":
                tracker = tracker_type(
                    config.recipe, id=_wandb_id(folder), resume="allow", name=folder.absolute().name
                )
            else:
                tracker = tracker_type(config.recipe)
            tracker.start()
            stack.callback(tracker.finish)
            tracker.store_init_configuration(flat_settings(to_dict(config)))
            trackers.append(tracker)
        yield trackers


def _wandb_id(folder: Path) -> str:
    """Return the id of the folder's W&B run; a new one is written to wandb_id."""
    file = folder / "wandb_id"
    if not file.exists():
        write_text(file, uuid.uuid4().hex[:8] + "\n")
    return file.read_text(encoding="utf-8").strip()


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by dotted name, as trackers accept them: numbers, text, None; lists as text."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            is_plain = value is None or isinstance(value, (bool, int, float, str))
            flat[f"{prefix}{name}"] = value if is_plain else str(value)
    return flat
