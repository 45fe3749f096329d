"""Reading run folders for the screen: which runs there are, how far each is, what it logged.

Only files are read, and torch is not imported: the app opens at once. A run is chosen by its id from
`run_ids`; no path ever comes from a browser.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SAMPLE_RUN = Path(__file__).parents[1] / "sample_run"
SAMPLE_ID = "recorded sample"
TRAINED_STAGES = ("sft", "warmup", "align", "rlvr")
POLICY_STAGES = ("base", "sft", "align", "rlvr")
STAGE_TITLES = {
    "base": "Base",
    "sft": "SFT",
    "warmup": "Warm-up",
    "align": "Aligned",
    "rlvr": "RLVR",
}
RUN_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
CACHED_FILES = 32


@dataclass(frozen=True)
class Home:
    """Where the runs lie.

    Attributes:
        root: the folder whose children are runs; new runs are made here.
        chosen: id of the run that a person named; None is the newest one.
        is_shared: strangers may visit: no training, no file checks.
    """

    root: Path
    chosen: str | None = None
    is_shared: bool = False

    @property
    def first(self) -> str:
        """Id of the run that a page shows when it is opened."""
        return self.chosen or run_ids(self)[0]


def open_home(run: str | None, *, root: Path = Path("runs"), is_shared: bool = False) -> Home:
    """The runs beside `run`, or those in `root` with the newest first, or the recorded sample alone.

    Raises:
        ValueError: `run` is not a run folder.
    """
    if run is not None:
        path = Path(run).resolve()
        if not (path / "config.yaml").is_file():
            raise ValueError(
                f"--run {run} holds no run: config.yaml is missing. Name a folder that "
                "`prism-lite run --out` made, or leave --run away for the recorded sample."
            )
        if path == SAMPLE_RUN.resolve():
            return Home(root.resolve(), SAMPLE_ID, is_shared)
        return Home(path.parent, path.name, is_shared)
    return Home(root.resolve(), None, is_shared)


def run_ids(home: Home) -> list[str]:
    """Ids of all runs, the newest first, the recorded sample last."""
    found = sorted(
        (path.parent for path in home.root.glob("*/config.yaml")), key=_changed_ns, reverse=True
    )
    return [*(path.name for path in found), SAMPLE_ID]


def run_path(home: Home, run_id: str) -> Path:
    """The folder of a listed run.

    Raises:
        ValueError: no such run.
    """
    if run_id not in run_ids(home):
        raise ValueError(f"there is no run {run_id!r} (any more): choose one from the list.")
    return SAMPLE_RUN if run_id == SAMPLE_ID else home.root / run_id


def read_config(path: Path) -> dict[str, Any]:
    """config.yaml as plain values."""
    return _yaml(path / "config.yaml", *_stamp(path / "config.yaml")) or {}


def read_results(path: Path) -> dict[str, Any]:
    """results.json, {} where nothing is evaluated yet."""
    return read_json(path / "results.json") or {}


def read_json(path: Path) -> Any:
    """A JSON file, or None where it is missing."""
    return _json(path, *_stamp(path)) if path.is_file() else None


def read_lines(path: Path) -> tuple[dict[str, Any], ...]:
    """A JSON-lines file, () where it is missing; a last line still being written is left out."""
    return _lines(path, *_stamp(path)) if path.is_file() else ()


def read_metrics(path: Path, stage: str | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, of one stage or all."""
    return [m for m in read_lines(path / "metrics.jsonl") if stage in (None, m["stage"])]


def rollout_steps(path: Path, stage: str) -> list[int]:
    """Steps of a stage whose rollouts are kept, ascending."""
    steps = (file.stem.rpartition("-")[2] for file in (path / "rollouts").glob(f"{stage}-*.jsonl"))
    return sorted(int(step) for step in steps if step.isdigit())


def read_rollouts(path: Path, stage: str, step: int) -> tuple[dict[str, Any], ...]:
    """One record per rollout of a step."""
    return read_lines(path / "rollouts" / f"{stage}-{step}.jsonl")


@dataclass(frozen=True)
class StageProgress:
    """How far a stage is.

    Attributes:
        steps_done, num_steps: optimizer updates.
        is_done: the stage's final weights were written, or its result was.
    """

    stage: str
    steps_done: int
    num_steps: int
    is_done: bool


def progress(path: Path) -> list[StageProgress]:
    """All four trained stages, by what lies in the folder."""
    config, results = read_config(path), read_results(path)
    metrics = read_metrics(path)
    found = []
    for stage in TRAINED_STAGES:
        steps = [line["step"] for line in metrics if line["stage"] == stage]
        num_steps = int(config.get(stage, {}).get("steps", 0))
        is_done = (path / "stages" / stage / "final").is_dir() or stage in results.get("stages", {})
        # the warm-up logs its last probe as one step more
        steps_done = min(max(steps) + 1, num_steps) if steps else 0
        # The recorded sample has no weights: a stage that logged its last step is done there.
        is_done = is_done or (path == SAMPLE_RUN and bool(steps) and max(steps) + 1 >= num_steps)
        found.append(StageProgress(stage, steps_done, num_steps, is_done))
    return found


def is_finished(path: Path) -> bool:
    """Every stage is trained and the last one is evaluated (where there are held-out rows)."""
    stages = progress(path)
    return all(stage.is_done for stage in stages)


def has_weights(path: Path) -> bool:
    """Whether any stage of the run could answer live."""
    return len(stages_with_weights(path)) > 1


def stages_with_weights(path: Path) -> tuple[str, ...]:
    """Policies that could answer live: base and every stage with final weights."""
    return tuple(
        stage
        for stage in POLICY_STAGES
        if stage == "base" or (path / "stages" / stage / "final").is_dir()
    )


def control_command(path: Path) -> str | None:
    """What control.json asks of the run."""
    try:
        return json.loads((path / "control.json").read_text(encoding="utf-8")).get("command")
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def signature(path: Path) -> tuple[Any, ...]:
    """Changes whenever something that a page shows of this run has changed."""
    files = ("metrics.jsonl", "results.json", "control.json", "config.yaml")
    stamps = [_stamp(path / name) for name in files]
    finals = tuple((path / "stages" / s / "final").is_dir() for s in TRAINED_STAGES)
    return (str(path), *stamps, finals)


def _changed_ns(path: Path) -> int:
    return max(_stamp(path / "metrics.jsonl")[0], _stamp(path / "config.yaml")[0])


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=CACHED_FILES)
def _yaml(path: Path, _changed: int, _size: int) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@functools.lru_cache(maxsize=CACHED_FILES)
def _json(path: Path, _changed: int, _size: int) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@functools.lru_cache(maxsize=CACHED_FILES)
def _lines(path: Path, _changed: int, _size: int) -> tuple[dict[str, Any], ...]:
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the run is writing this line, or was killed while it did
    return tuple(records)
