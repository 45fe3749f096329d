"""Record a finished run for people without it: `python -m demo.record RUN OUT`.

OUT becomes a small run folder: settings, environment, all metrics and results as they are, the rollouts
of a few steps, and under `demo/` completions and scored groups that the run's own models gave when this
was run. Weights stay out. `demo/recorded.json` says what was kept and how.
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
from demo.screens.verdicts import mark

NUM_PROMPTS = 6
NUM_GROUPS = 4
GROUP_SIZE = 8
SEEDS = (0, 1)
NUM_KEPT_STEPS = 5  # of each stage with rollouts
COPIED = ("config.yaml", "env.json", "metrics.jsonl", "results.json")


def record(run: Path, out: Path) -> None:
    """Write the recording.

    Raises:
        ValueError: `run` is not finished, or `out` holds something already.
    """
    if not folder.is_finished(run):
        raise ValueError(f"{run} is not finished: record a whole run.")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: name a new folder.")
    (out / "rollouts").mkdir(parents=True)
    (out / "demo").mkdir()
    for name in COPIED:
        shutil.copy(run / name, out / name)
    kept: dict[str, list[int]] = {}
    for stage in ("align", "rlvr"):
        steps = folder.rollout_steps(run, stage)
        places = {round(i * (len(steps) - 1) / (NUM_KEPT_STEPS - 1)) for i in range(NUM_KEPT_STEPS)}
        kept[stage] = [steps[place] for place in sorted(places)]
        for step in kept[stage]:
            name = f"{stage}-{step}.jsonl"
            shutil.copy(run / "rollouts" / name, out / "rollouts" / name)
    model = Model(run)
    _write_lines(out / "demo" / "compare.jsonl", _completions(model))
    _write_lines(out / "demo" / "groups.jsonl", _groups(model))
    _write_lines(out / "demo" / "samples.jsonl", _samples(model, out))
    about = {
        "how": "python -m demo.record RUN OUT, after `prism-lite run` with the settings in config.yaml",
        "when": time.strftime("%Y-%m-%d"),
        "device": model.device,
        "kept": "metrics.jsonl, results.json, env.json and config.yaml whole; rollouts of these steps only",
        "rollout_steps": kept,
        "left_out": "all weights and checkpoints, plots, the card, the other rollouts",
        "demo/compare.jsonl": f"{NUM_PROMPTS} held-out prompts, every stage: most likely tokens with "
        f"seed 0, and temperature 1 with seeds {', '.join(map(str, SEEDS))}",
        "demo/samples.jsonl": "question, picture, gold answer and teacher of every prompt named here",
        "demo/groups.jsonl": f"{NUM_GROUPS} alignment prompts, {GROUP_SIZE} completions of the aligned "
        "policy each, scored and routed by the discriminator alignment ended with; weights to 3 digits",
    }
    (out / "demo" / "recorded.json").write_text(
        json.dumps(about, indent=1) + "\n", encoding="utf-8"
    )


def _completions(model: Model) -> Iterable[dict[str, Any]]:
    draws = [(0.0, 0), *((1.0, seed) for seed in SEEDS)]
    for sample in _of_each_kind(model.task.heldout):
        for temperature, seed in draws:
            for stage in model.stages:
                *_, last = model.answer(stage, sample, seed=seed, temperature=temperature)
                yield {
                    "prompt_id": sample.id,
                    "stage": stage,
                    "seed": seed,
                    "temperature": temperature,
                    "completion": last.text,
                    "finish_reason": last.finish_reason,
                    "num_tokens": last.num_tokens,
                    "marks": asdict(mark(last.text, last.finish_reason, sample)),
                }


def _groups(model: Model) -> Iterable[dict[str, Any]]:
    for sample in _of_each_kind(model.task.align)[:NUM_GROUPS]:
        yield model.group(sample, "align", group_size=GROUP_SIZE, seed=0)


def _samples(model: Model, out: Path) -> Iterable[dict[str, Any]]:
    """Question, picture, gold answer and teacher of every prompt that the recording names."""
    files = [*(out / "rollouts").glob("*.jsonl"), out / "demo" / "compare.jsonl"]
    files.append(out / "demo" / "groups.jsonl")
    named = {line["prompt_id"] for file in files for line in folder.read_lines(file)}
    for sample in (*model.task.align, *model.task.rlvr, *model.task.heldout):
        if sample.id in named:
            yield sample_line(sample)


def _of_each_kind(samples: Any) -> list[Any]:
    """The first sample of every question, then the next ones: not chosen by how they come out."""
    kinds: dict[str, Any] = {}
    for sample in samples:
        kinds.setdefault(sample.question, sample)
    return list(kinds.values())[:NUM_PROMPTS]


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for line in records:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("out", type=Path, help="a new folder")
    arguments = parser.parse_args()
    record(arguments.run, arguments.out)
