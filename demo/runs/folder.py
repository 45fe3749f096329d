"""Read run folders: which runs there are, how far each one is, and what it logged.

torch is not imported, so that the page opens at once. A browser never sends a path: it names a run by
its id, which must be in `run_ids`.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prism_lite.files import read_jsonl
from prism_lite.types import EVALUATED_STAGES

SAMPLE_RUN = Path(__file__).parents[1] / "sample_run"
SAMPLE_ID = "recorded sample"
STAGE_TITLES = {
    "base": "Base",
    "sft": "SFT",
    "control": "RLVR alone",
    "warmup": "Warm-up",
    "align": "Aligned",
    "rlvr": "RLVR",
}
RUN_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_CACHED_FILES = 64


@dataclass(frozen=True)
class Home:
    """The folder of the runs.

    Attributes:
        root: its subfolders are the runs.
        chosen: id of the run to show first; None is the newest one.
        is_shared: whether strangers visit through a public link: no training, no file checks.
    """

    root: Path
    chosen: str | None = None
    is_shared: bool = False

    @property
    def first(self) -> str:
        """Id of the run that a page shows when it is opened."""
        return self.chosen or run_ids(self)[0]


def open_home(run: str | None, *, root: Path = Path("runs"), is_shared: bool = False) -> Home:
    """Return the folder that contains `run`, which must be a run folder, or `root` if it is None."""
    if run is None:
        return Home(root.resolve(), None, is_shared)
    path = Path(run).resolve()
    if not (path / "config.yaml").is_file():
        raise ValueError(
            f"--run {run} is not a run folder: config.yaml is missing. Name a folder that "
            "`prism-lite run --out` created, or omit --run to see the recorded sample."
        )
    if path == SAMPLE_RUN.resolve():
        return Home(root.resolve(), SAMPLE_ID, is_shared)
    return Home(path.parent, path.name, is_shared)


def run_ids(home: Home) -> list[str]:
    """Return the ids of all runs, newest first, the recorded sample last."""

    def changed_ns(path: Path) -> int:
        return max(_stamp(path / "metrics.jsonl")[0], _stamp(path / "config.yaml")[0])

    paths = [file.parent for file in home.root.glob("*/config.yaml")]
    return [path.name for path in sorted(paths, key=changed_ns, reverse=True)] + [SAMPLE_ID]


def new_run_id(home: Home) -> str:
    """Return a name that no run has yet: "run-1", "run-2" and so on."""
    known = run_ids(home)
    return next(name for i in itertools.count(1) if (name := f"run-{i}") not in known)


def run_path(home: Home, run_id: str) -> Path:
    """Return the folder of a run; raise a ValueError if it does not exist."""
    if run_id not in run_ids(home):
        raise ValueError(f"run {run_id!r} does not exist (any more): choose one from the list.")
    return SAMPLE_RUN if run_id == SAMPLE_ID else home.root / run_id


def read_config(path: Path) -> dict[str, Any]:
    """Return config.yaml as plain values."""
    return _read(path / "config.yaml", {})


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file such as results.json, {} if it is missing."""
    return _read(path, {})


def read_lines(path: Path) -> tuple[dict[str, Any], ...]:
    """Return the records of a JSON-lines file, () if it is missing."""
    return _read(path, ())


def read_metrics(path: Path, stage: str | None = None) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, of one stage or of all."""
    return [m for m in read_lines(path / "metrics.jsonl") if stage in (None, m["stage"])]


def rollout_steps(path: Path, stage: str) -> list[int]:
    """Return the steps of a stage whose rollouts were saved, ascending."""
    steps = (file.stem.rpartition("-")[2] for file in (path / "rollouts").glob(f"{stage}-*.jsonl"))
    return sorted(int(step) for step in steps if step.isdigit())


def read_rollouts(path: Path, stage: str, step: int) -> tuple[dict[str, Any], ...]:
    """Return one record per rollout of a step."""
    return read_lines(path / "rollouts" / f"{stage}-{step}.jsonl")


@dataclass(frozen=True)
class StageProgress:
    """The number of finished steps of a stage, and whether it is done."""

    stage: str
    steps_done: int
    num_steps: int
    is_done: bool


def trained_stages(path: Path) -> list[str]:
    """Return the stages that a run trains, in order."""
    config = read_config(path)
    align, rlvr = config.get("align", {}), config.get("rlvr", {})
    skipped = {"base"}
    if not rlvr.get("control"):
        skipped.add("control")
    if align.get("method", "adversarial") != "adversarial" and not keeps_game(path):
        skipped.add("warmup")  # no stage trains a discriminator
    return [stage for stage in STAGE_TITLES if stage not in skipped]


def shown_stages(path: Path) -> tuple[str, ...]:
    """Return the policies that a run compares: RLVR alone only where it is trained."""
    trained = trained_stages(path)
    return tuple(stage for stage in EVALUATED_STAGES if stage == "base" or stage in trained)


def keeps_game(path: Path) -> bool:
    """Return whether the discriminator is kept on during RLVR."""
    return read_config(path).get("rlvr", {}).get("game", "off") not in ("off", False)


def _num_steps(config: dict[str, Any], stage: str) -> int:
    if stage != "control":
        return int(config.get(stage, {}).get("steps", 0))
    align, rlvr = config["align"], config["rlvr"]  # as `stages.rlvr.control_config`
    num_rollouts = align["steps"] * align["prompts_per_step"] * align["group_size"]
    per_step = rlvr["prompts_per_step"] * rlvr["group_size"]
    return int(rlvr["steps"]) + math.ceil(num_rollouts / per_step)


def progress(path: Path) -> list[StageProgress]:
    """Return the progress of all stages that the run trains."""
    config, metrics = read_config(path), read_metrics(path)
    evaluated = read_json(path / "results.json").get("stages", {})
    stages = []
    for stage in trained_stages(path):
        num_steps = _num_steps(config, stage)
        num_logged = 1 + max((m["step"] for m in metrics if m["stage"] == stage), default=-1)
        is_done = has_final(path, stage) or stage in evaluated
        is_done |= path == SAMPLE_RUN  # it has no weights, and only finished runs are recorded
        # the warm-up logs its last probe as an extra step
        stages.append(StageProgress(stage, min(num_logged, num_steps), num_steps, is_done))
    return stages


def is_finished(path: Path) -> bool:
    """Return whether every stage is done."""
    return all(stage.is_done for stage in progress(path))


def finished_stages(path: Path) -> tuple[str, ...]:
    """Return what is finished: each stage with final weights, and once more each one that is evaluated."""
    evaluated = read_json(path / "results.json").get("stages", {})
    trained = (stage for stage in STAGE_TITLES if has_final(path, stage))
    return *trained, *(f"{stage} evaluated" for stage in STAGE_TITLES if stage in evaluated)


def has_final(path: Path, stage: str) -> bool:
    """Return whether a stage has saved its final weights."""
    return (path / "stages" / stage / "final").is_dir()


def has_discriminator(path: Path, stage: str) -> bool:
    """Return whether a stage has saved a discriminator."""
    return (path / "stages" / stage / "final" / "discriminator.safetensors").is_file()


def has_weights(path: Path) -> bool:
    """Return whether any stage has a policy to sample from."""
    return len(stages_with_weights(path)) > 1


def stages_with_weights(path: Path) -> tuple[str, ...]:
    """Return the stages whose policy can be sampled from: the base, and those with final weights."""
    return tuple(stage for stage in EVALUATED_STAGES if stage == "base" or has_final(path, stage))


def control_command(path: Path) -> str | None:
    """Return the command in control.json: "pause", "resume" or "stop"."""
    try:
        return json.loads((path / "control.json").read_text(encoding="utf-8")).get("command")
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def signature(path: Path) -> tuple[Any, ...]:
    """Return a value that changes whenever the pages of this run change."""
    files = ("metrics.jsonl", "results.json", "control.json", "config.yaml")
    finals = [has_final(path, stage) for stage in STAGE_TITLES]
    return (str(path), *(_stamp(path / name) for name in files), *finals)


def _stamp(path: Path) -> tuple[int, int]:
    """Return when a file was changed and its size; zeros if it is missing."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _read(path: Path, default: Any) -> Any:
    return _parse(path, *_stamp(path)) if path.is_file() else default


@functools.lru_cache(maxsize=_CACHED_FILES)
def _parse(path: Path, _changed_ns: int, _size: int) -> Any:
    if path.suffix == ".jsonl":
        return tuple(read_jsonl(path))
    text = path.read_text(encoding="utf-8")
    return yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
