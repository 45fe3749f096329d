"""What a card really does: `make gpu-check`, or `python -m tests.gpu_check [--recipe NAME]`.

Runs the tests marked `gpu`, the benchmarks, and a few real steps of every stage: of the embedded task on
the card, and of a recipe's Qwen3-VL where one is named. Writes tests/measured/CARD.json: card, versions,
times and peaks. What fails is recorded with its reason; nothing is left out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from prism_lite.types import STAGES

REPOSITORY = Path(__file__).parents[1]
MEASURED = Path(__file__).parent / "measured"
MARKS = ("<!-- measured cards: begin -->", "<!-- measured cards: end -->")
# Short, and the same on every card. SFT is long enough for a real model to answer in three parts.
STEPS = {
    "data.task": "digits", "data.num_sft": 256, "data.num_align": 64, "data.num_rlvr": 64,
    "data.num_heldout": 16, "sft.steps": 20, "warmup.steps": 5, "warmup.num_prompts": 12,
    "warmup.num_probe": 20, "align.steps": 5, "align.gate": "warn", "rlvr.steps": 5,
    "eval.num_samples": 2,
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check", description=__doc__)
    parser.add_argument("--recipe", help="also the model of this recipe (needs it downloaded)")
    parser.add_argument("--out", type=Path, default=MEASURED, help="folder of the JSON file")
    parser.add_argument("--table", action="store_true", help="print the README's table and stop")
    options = parser.parse_args(arguments)
    if options.table:
        print(measured_table(read_measured(options.out)))
        return 0
    import torch

    if not torch.cuda.is_available():
        print("gpu-check: torch finds no NVIDIA card here, so there is nothing to check.")
        return 2
    record = environment() | {
        "tests": run_tests(),
        "benchmarks": run_benchmarks(),
        "stages": {name: run_stages(name) for name in ("tiny", options.recipe) if name},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{slug(record['card'])}.json"
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(measured_table([record]))
    print(f"written: {file}")
    return 0 if is_good(record) else 1


def environment() -> dict[str, Any]:
    """Card, driver, versions and commit."""
    import torch

    from prism_lite.version import installed_version

    properties = torch.cuda.get_device_properties(0)
    names = ("torch", "triton", "transformers", "peft", "bitsandbytes", "unsloth", "flash_attn")
    return {
        "card": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "gib": round(properties.total_memory / 2**30, 2),
        "cuda": torch.version.cuda,
        "driver": first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "versions": {name: installed_version(name) for name in names},
        "commit": first_line("git", "rev-parse", "HEAD"),
        "date": datetime.date.today().isoformat(),
    }


def first_line(*command: str) -> str | None:
    """The first line a program prints, or None where it cannot be run."""
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else None


def run_tests() -> dict[str, Any]:
    """The tests marked gpu: how many passed, and which did not."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rfE", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    print(done.stdout)
    return parse_pytest(done.stdout)


def parse_pytest(output: str) -> dict[str, Any]:
    """Counts of pytest's last line, and the names of what failed."""
    lines = output.strip().splitlines()
    counts = {
        word: int(number)
        for number, word in re.findall(
            r"(\d+) (passed|failed|errors?|skipped)", lines[-1] if lines else ""
        )
    }
    failed = [line.split()[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return counts | {"not_passed": failed}


def run_benchmarks() -> dict[str, Any]:
    """The text that `python -m tests.bench` prints, and how long it took."""
    started_s = time.monotonic()
    command = [sys.executable, "-m", "tests.bench"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    print(done.stdout)
    facts = {"seconds": round(time.monotonic() - started_s, 1), "text": done.stdout}
    return facts | ({"error": done.stderr[-2000:]} if done.returncode else {})


def run_stages(recipe: str) -> dict[str, Any]:
    """A few real steps of every stage of a recipe, each in a process of its own: its true peak."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for stage in STAGES:
            settings = [f"{key}={value}" for key, value in STEPS.items()]
            command = [
                sys.executable, "-m", "prism_lite", stage, "--recipe", recipe, "--out",
                f"{folder}/run", "model.device=cuda", *settings,
            ]  # fmt: skip
            print(f"{recipe}: {stage}", flush=True)
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
            if done.returncode:
                found[stage] = {"error": done.stderr.strip()[-2000:]}
                break
            lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
            found[stage] = stage_figures([json.loads(line) for line in lines], stage)
    return found


def stage_figures(metrics: Sequence[Mapping[str, Any]], stage: str) -> dict[str, float]:
    """Median seconds a step after the first, peak memory, and tokens a second where they are logged."""
    steps = [m for m in metrics if m["stage"] == stage and "step_time" in m]
    later = steps[1:] or steps  # the first one compiles and allocates
    figures = {
        "step_s": median(m["step_time"] for m in later),
        "peak_gib": max(m["mem/peak_gib"] for m in steps),
        "num_steps": len(steps),
    }
    for name in ("train_tokens_per_s", "gen_tokens_per_s"):
        values = [m[name] for m in later if name in m]
        if values:
            figures[name] = median(values)
    return figures


def is_good(record: Mapping[str, Any]) -> bool:
    """Whether nothing failed."""
    stages = [figures for found in record["stages"].values() for figures in found.values()]
    return (
        not record["tests"]["not_passed"]
        and "error" not in record["benchmarks"]
        and all("error" not in figures for figures in stages)
    )


def read_measured(folder: Path = MEASURED) -> list[dict[str, Any]]:
    """The records of a folder, by card."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]


def measured_table(records: Sequence[Mapping[str, Any]]) -> str:
    """The README's table of measured cards; a sentence where there is none."""
    if not records:
        return "No card has been measured yet: `make gpu-check` on yours makes the first row."
    head = "| card | recipe | SFT | warm-up | alignment | RLVR | gpu tests | date |"
    rows = [head, "|" + "---|" * 8]
    for record in records:
        tests = f"{record['tests'].get('passed', 0)} passed"
        if record["tests"]["not_passed"]:
            tests += f", {len(record['tests']['not_passed'])} not"
        for recipe, found in record["stages"].items():
            cells = [_cell(found.get(stage)) for stage in STAGES]
            row = [f"{record['card']} ({record['gib']:.0f} GiB)", recipe, *cells, tests]
            rows.append("| " + " | ".join([*row, record["date"]]) + " |")
    return "\n".join(rows)


def _cell(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return "not run"
    if "error" in figures:
        return "failed"
    return f"{figures['step_s']:.2f} s, {figures['peak_gib']:.1f} GiB"


def slug(card: str) -> str:
    """A file name for a card: "NVIDIA GeForce RTX 4090" is nvidia-geforce-rtx-4090."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
