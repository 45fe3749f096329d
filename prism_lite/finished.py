"""A finished run, read back: its settings, its model at any stage, its figures. Nothing here writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from prism_lite.checkpoint import load_final
from prism_lite.config import ModelConfig, RunConfig
from prism_lite.data.task import TaskData, load_heldout, system_prompt_of
from prism_lite.evaluate import evaluate, evaluated_samples
from prism_lite.models.backbone import Backbone, load_backbone
from prism_lite.pipeline import POLICY_STAGES, base_folder
from prism_lite.reading import read_prompts
from prism_lite.recipe import read_run
from prism_lite.report import stage_line
from prism_lite.rollouts import sample_groups


def last_stage(path: str | Path) -> str:
    """The latest finished stage that has a policy.

    Raises:
        ValueError: none is finished.
    """
    done = [s for s in POLICY_STAGES if (Path(path) / "stages" / s / "final").is_dir()]
    if not done:
        raise ValueError(f"--run {path}: no stage with a policy is finished ({POLICY_STAGES}).")
    return done[-1]


def load_stage(path: str | Path, config: RunConfig, stage: str) -> Backbone:
    """The run's backbone with the policy of a finished stage ("base": a fresh one, which does
    nothing).

    Raises:
        ValueError: the stage is not finished.
    """
    tensors = load_final(Path(path) / "stages" / stage) if stage != "base" else None
    settings = _on_this_machine(config.model)
    backbone = load_backbone(settings, config.lora, base_folder(config), seed=config.seed)
    if tensors is not None:
        backbone.load_adapter_state(tensors["policy"])
    return backbone


def load_checkpoint(config: RunConfig, model: str) -> Backbone:
    """A whole checkpoint (a merged export, a hub id) under a run's settings, as it is: not quantised.

    Raises:
        ValueError: it is no Qwen3-VL.
    """
    settings = dataclasses.replace(config.model, name=model, quantization="none")
    return load_backbone(_on_this_machine(settings), config.lora, model, seed=config.seed)


def _on_this_machine(model: ModelConfig) -> ModelConfig:
    """What was trained on a large card may be looked at on a small one, or on a CPU."""
    return dataclasses.replace(model, device="auto" if model.device == "cuda" else model.device)


def heldout_task(
    config: RunConfig,
    file: str | None,
    columns: Mapping[str, str] | None,
    *,
    console: Console | None = None,
) -> TaskData:
    """The run's task with its held-out rows only, or with those of another file that have an answer.

    Raises:
        ValueError: the file is missing or holds no row with an answer; names it.
    """
    if file is None:
        return load_heldout(config, console=console)
    data = dataclasses.replace(
        config.data, task="files", heldout=file, columns=dict(columns or {}), image_root=None
    )
    task = load_heldout(dataclasses.replace(config, data=data), console=console)
    return dataclasses.replace(task, system_prompt=system_prompt_of(config))


def evaluate_run(
    path: str | Path,
    stage: str | None = None,
    *,
    model: str | None = None,
    data: str | None = None,
    columns: Mapping[str, str] | None = None,
    num_shown: int = 0,
    console: Console,
) -> dict[str, Any]:
    """Evaluate a stage of a run, or another checkpoint, and print its figures; writes nothing.

    Args:
        stage: default: the last finished one.
        model: a merged export or hub id to evaluate under the run's settings instead of a stage.
        data: rows to evaluate on instead of the run's held-out ones: any known format.
        columns: our field name -> the file's column, for formats that are not known.
        num_shown: how many greedy completions to print beside their questions.

    Returns:
        The figures of `evaluate`, and n, the number of prompts.

    Raises:
        ValueError: no such run, stage, checkpoint or file.
    """
    config = read_run(path)
    task = heldout_task(config, data, columns, console=console)
    if not task.heldout:
        raise ValueError(f"--run {path} has no held-out rows: give --data FILE.")
    stage = stage or (last_stage(path) if model is None else "model")
    backbone = load_stage(path, config, stage) if model is None else load_checkpoint(config, model)
    console.print(f"{backbone.precision.reason}; {backbone.loader}", highlight=False)
    task = read_prompts(config, backbone, task, console)
    if not task.heldout:
        raise ValueError(f"no row is left to evaluate: {task.skipped[0].message}")
    if data is not None:  # all of what was asked for
        config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, num_prompts=0))
    figures = evaluate(backbone, task, config) | {"n": len(evaluated_samples(task, config))}
    console.print(f"{stage_line(stage, figures)}, {figures['n']} prompts", highlight=False)
    shown = sample_groups(
        backbone,
        task.heldout[:num_shown],
        group_size=1,
        sampling=dataclasses.replace(config.sampling, temperature=0.0),
        system_prompt=task.system_prompt,
        seed=("show",),
    )
    for group in shown:
        console.print(f"\n{group.sample.question} gold: {group.sample.answer}", markup=False)
        console.print(group.rollouts[0].text, markup=False)
    return figures
