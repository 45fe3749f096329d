"""`--from-checkpoint STAGE:STEP`: resume from a checkpoint that is not the newest one.

What came after it is moved to superseded-N in the run folder: nothing is deleted.
"""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

from prism_lite.console import say
from prism_lite.files import write_jsonl
from prism_lite.runs.checkpoint import checkpoint_folders, load_folder, step_of
from prism_lite.runs.folder import RunFolder
from prism_lite.runs.resume import stage_settings
from prism_lite.types import STAGES

_BY_STAGE = ("stages", "drift", "kept", "seconds")  # entries of results.json
# Stages that use a stage's result; control starts from SFT and nothing starts from it.
_LATER = {stage: (*STAGES[number + 1 :],) for number, stage in enumerate(STAGES)}
_LATER |= {"sft": (*_LATER["sft"], "control"), "control": ()}


def go_back(run: RunFolder, place: str) -> None:
    """Make a checkpoint the newest one of its stage, and unmake all that came after it.

    Args:
        place: STAGE:STEP, as "align:40": the folder stages/align/checkpoint-40.

    Raises:
        ValueError: the checkpoint does not exist, or it must not be used.
    """
    stage, _, step_text = place.partition(":")
    folder = run.stage(stage) / f"checkpoint-{step_text}"
    existing = checkpoint_folders(run.stage(stage)) if stage in _LATER else []
    if folder not in existing:
        others = [f"{s}:{step_of(f)}" for s in _LATER for f in checkpoint_folders(run.stage(s))]
        raise ValueError(
            f"--from-checkpoint {place}: {run.path} has no such checkpoint. It has "
            f"{', '.join(others) or 'none'}."
        )
    restored, problem = load_folder(folder, settings=stage_settings(run.config, stage))
    if restored is None:
        raise ValueError(f"--from-checkpoint {place}: {folder} refused: {problem}.")
    later = _LATER[stage]
    moved = [path for path in existing if step_of(path) > restored.step]
    moved += [run.stage(stage) / "final", *(run.stage(name) for name in later)]
    moved += [run.path / "evaluations" / f"{name}.json" for name in (stage, *later)]
    moved += [run.path / "policy", run.path / "discriminator"]
    target = next(p for n in count(1) if not (p := run.path / f"superseded-{n}").exists())
    _forget(run, stage, restored.step)
    for path in moved:
        if path.exists():
            new = target / path.relative_to(run.path)
            new.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, new)
    say(run.console, f"stage {stage} resumes from step {restored.step}{_moved_to(target)}")


def _moved_to(target: Path) -> str:
    return f"; what came after it is now in {target}" if target.exists() else ""


def _forget(run: RunFolder, stage: str, num_steps: int) -> None:
    """Remove the figures of later steps and stages from results.json and metrics.jsonl."""
    results = run.results()
    for entries in (results.get(name, {}) for name in _BY_STAGE):
        for name in (stage, *_LATER[stage]):
            entries.pop(name, None)
    if results:
        run.write_results(results)
    kept = [
        line
        for line in run.metrics()
        if line["stage"] not in _LATER[stage]
        and (line["stage"] != stage or line["step"] < num_steps)
    ]
    write_jsonl(run.path / "metrics.jsonl", kept)
