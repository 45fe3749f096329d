"""Trackers: accelerate's own classes with a fake TensorBoard writer."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import Any

import pytest

from prism_lite.runs.folder import open_run
from prism_lite.runs.trackers import check_trackers, flat_settings
from tests.micro import micro_recipe, quiet_console


@pytest.fixture
def written(monkeypatch) -> list[tuple[Any, ...]]:
    """What reaches TensorBoard's writer."""
    calls: list[tuple[Any, ...]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            calls.append(("open", folder))

        def add_hparams(self, values: dict[str, Any], metric_dict: dict[str, Any]) -> None:
            calls.append(("settings", values))

        def add_scalar(self, name: str, value: float, global_step: int) -> None:
            calls.append((name, value, global_step))

        def flush(self) -> None: ...

        def close(self) -> None:
            calls.append(("close",))

    module: Any = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    package = types.ModuleType("tensorboard")
    package.__spec__ = importlib.machinery.ModuleSpec("tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard", package)
    return calls


def test_every_line_of_metrics_is_tracked_and_a_resumed_run_continues_the_count(written, tmp_path):
    config = micro_recipe(track=["tensorboard"])
    check_trackers(config)
    with open_run(tmp_path / "r", config, quiet_console()) as run:
        run.log("sft", 0, {"loss": 2.0, "grad_norm": 1.0})
        run.log("sft", 1, {"loss": 1.5})
    assert written[0] == ("open", str(tmp_path / "r" / "tensorboard"))
    assert written[1][1]["sft.optim.learning_rate"] == config.sft.optim.learning_rate
    assert written[2:] == [
        ("sft/loss", 2.0, 0), ("sft/grad_norm", 1.0, 0), ("sft/loss", 1.5, 1), ("close",)
    ]  # fmt: skip
    written.clear()
    with open_run(tmp_path / "r", micro_recipe(track=["tensorboard"]), quiet_console()) as run:
        run.log("align", 0, {"reward": 0.5})
    assert ("align/reward", 0.5, 2) in written


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"track = wandb: .*not installed: pip install"):
        check_trackers(micro_recipe(track=["wandb"]))


def test_settings_are_flat_and_plain():
    assert flat_settings({"a": {"b": [1, 2], "c": None}, "d": True}) == {
        "a.b": "[1, 2]", "a.c": None, "d": True
    }  # fmt: skip
