"""TensorBoard, trackio and W&B beside metrics.jsonl, through accelerate's trackers."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prism_lite.config import RunConfig
from prism_lite.recipe import to_dict


def check_trackers(config: RunConfig) -> None:
    """Whether the packages that `track` names are here, before anything is written.

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
    """accelerate's trackers of this run, started and told the settings; finished at the end.

    TensorBoard writes to `folder`/tensorboard; the others name their project after the recipe.
    """
    if not config.track:
        yield []
        return
    from accelerate import PartialState, tracking

    PartialState()  # the trackers ask it which process is the main one
    trackers: list[Any] = []
    try:
        for name in config.track:
            if name == "tensorboard":
                tracker = tracking.TensorBoardTracker("tensorboard", folder)
            elif name == "trackio":
                tracker = tracking.TrackioTracker(config.recipe)
            else:
                tracker = tracking.WandBTracker(config.recipe)
            tracker.start()
            trackers.append(tracker)
            tracker.store_init_configuration(flat_settings(to_dict(config)))
        yield trackers
    finally:
        for tracker in trackers:
            tracker.finish()


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names to what trackers take: numbers, strings, None; lists as text."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            plain = value is None or isinstance(value, (bool, int, float, str))
            flat[f"{prefix}{name}"] = value if plain else str(value)
    return flat
