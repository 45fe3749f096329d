"""Load a finished run: its model at any stage and its held-out rows. Writes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from prism_lite.config import ModelConfig, RunConfig
from prism_lite.data.task import TaskData, load_heldout, system_prompt_of
from prism_lite.digits.base_model import base_folder
from prism_lite.models.backbone import Backbone, load_backbone
from prism_lite.runs.checkpoint import load_final
from prism_lite.types import POLICY_STAGES


def last_stage(path: str | Path) -> str:
    """Return the last finished stage that has a policy.

    Raises:
        ValueError: none is finished.
    """
    done = [s for s in POLICY_STAGES if (Path(path) / "stages" / s / "final").is_dir()]
    if not done:
        raise ValueError(f"--run {path}: no stage with a policy is finished ({POLICY_STAGES}).")
    return done[-1]


def load_stage(path: str | Path, config: RunConfig, stage: str) -> Backbone:
    """Load the run's backbone with the policy of a finished stage; "base" has an untrained adapter.

    Raises:
        ValueError: the stage is not finished.
    """
    tensors = load_final(Path(path) / "stages" / stage) if stage != "base" else None
    model = _on_this_machine(config.model)
    backbone = load_backbone(model, config.lora, base_folder(config), seed=config.seed)
    if tensors is not None:
        backbone.load_adapter_state(tensors["policy"])
    return backbone


def load_checkpoint(config: RunConfig, model: str) -> Backbone:
    """Load a complete checkpoint (a merged export, a hub id) under a run's settings, not quantised.

    Raises:
        ValueError: it is not a Qwen3-VL.
    """
    settings = dataclasses.replace(config.model, name=model, quantization="none")
    return load_backbone(_on_this_machine(settings), config.lora, model, seed=config.seed)


def _on_this_machine(model: ModelConfig) -> ModelConfig:
    """Let a model that was trained on a large GPU load on a small one, or on a CPU."""
    return dataclasses.replace(model, device="auto" if model.device == "cuda" else model.device)


def heldout_task(
    config: RunConfig,
    file: str | None,
    columns: Mapping[str, str] | None,
    *,
    console: Console | None = None,
) -> TaskData:
    """Load the run's task with its held-out rows only, or with the rows of another file.

    Raises:
        ValueError: the file is missing or has no row with an answer; names it.
    """
    if file is None:
        return load_heldout(config, console=console)
    data = dataclasses.replace(
        config.data,
        task="files",
        heldout=file,
        columns=dict(columns or {}),
        image_root=None,
        system_prompt=system_prompt_of(config),
    )
    return load_heldout(dataclasses.replace(config, data=data), console=console)
