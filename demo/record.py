"""Record a finished run for users who do not have it: `python -m demo.record RUN OUT`.

OUT becomes a small run folder: settings, environment, all metrics and results, the rollouts of a few
steps, and in `demo/` completions and scored groups sampled from the run's own models. Weights are left
out. `demo/recorded.json` describes the contents.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from demo.models.model import Model
from demo.runs import folder
from demo.runs.samples import sample_line
from demo.screens.marks import mark

NUM_PROMPTS = 6
_NUM_GROUPS = 4
GROUP_SIZE = 8
SEEDS = (0, 1)
NUM_STEPS = 5  # whose rollouts are kept, of each stage that has them
_COPIED = ("config.yaml", "env.json", "metrics.jsonl", "results.json")


def record(run: Path, out: Path) -> None:
    """Write the recording of a finished run to a new folder."""
    if not folder.is_finished(run):
        raise ValueError(f"{run} is not finished: record a complete run.")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: name a new folder.")
    (out / "rollouts").mkdir(parents=True)
    (out / "demo").mkdir()
    for name in _COPIED:
        shutil.copy(run / name, out / name)
    kept: dict[str, list[int]] = {}
    for stage in ("align", "rlvr"):
        steps = folder.rollout_steps(run, stage)
        indices = {round(i * (len(steps) - 1) / (NUM_STEPS - 1)) for i in range(NUM_STEPS)}
        kept[stage] = [steps[index] for index in sorted(indices)]
        for step in kept[stage]:
            shutil.copy(run / "rollouts" / f"{stage}-{step}.jsonl", out / "rollouts")
    model = Model(run)
    _write_lines(out / "demo" / "compare.jsonl", _completions(model))
    _write_lines(out / "demo" / "groups.jsonl", _groups(model))
    _write_lines(out / "demo" / "samples.jsonl", _samples(model, out))
    about = {
        "how": "python -m demo.record RUN OUT, after `prism-lite run` with the settings in config.yaml",
        "when": time.strftime("%Y-%m-%d"),
        "device": model.device,
        "kept": f"{', '.join(_COPIED)} unchanged; the rollouts of these steps",
        "rollout_steps": kept,
        "left_out": "all weights and checkpoints, plots, the model card, the other rollouts",
        "demo/compare.jsonl": "completions of held-out prompts by every stage, with marks",
        "demo/samples.jsonl": "the prompts with gold answer and teacher",
        "demo/groups.jsonl": "groups of the aligned policy with scores and routing",
    }
    _write_lines(out / "demo" / "recorded.json", [about], indent=1)


def _completions(model: Model) -> Iterable[dict[str, Any]]:
    settings = [(0.0, 0), *((1.0, seed) for seed in SEEDS)]
    for sample in _varied(model.task.heldout):
        for temperature, seed in settings:
            for stage in model.stages:
                *_, answer = model.answer(stage, sample, seed=seed, temperature=temperature)
                yield {
                    "prompt_id": sample.id,
                    "stage": stage,
                    "seed": seed,
                    "temperature": temperature,
                    "completion": answer.text,
                    "finish_reason": answer.finish_reason,
                    "num_tokens": answer.num_tokens,
                    "marks": asdict(mark(answer.text, answer.finish_reason, sample)),
                }


def _groups(model: Model) -> Iterable[dict[str, Any]]:
    for sample in _varied(model.task.align)[:_NUM_GROUPS]:
        yield model.group(sample, "align", group_size=GROUP_SIZE, seed=0)


def _samples(model: Model, out: Path) -> Iterable[dict[str, Any]]:
    """Yield the sample of every prompt in the recording."""
    files = [*(out / "rollouts").glob("*.jsonl"), *(out / "demo").glob("*.jsonl")]
    ids = {line["prompt_id"] for file in files for line in folder.read_lines(file)}
    for sample in (*model.task.align, *model.task.rlvr, *model.task.heldout):
        if sample.id in ids:
            yield sample_line(sample)


def _varied(samples: Any) -> list[Any]:
    """Return the first sample of each question; their completions play no role in the choice."""
    first: dict[str, Any] = {}
    for sample in samples:
        first.setdefault(sample.question, sample)
    return list(first.values())[:NUM_PROMPTS]


def _write_lines(path: Path, records: Iterable[dict[str, Any]], indent: int | None = None) -> None:
    path.write_text("".join(json.dumps(r, indent=indent) + "\n" for r in records), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("out", type=Path, help="a new folder")
    arguments = parser.parse_args()
    record(arguments.run, arguments.out)
