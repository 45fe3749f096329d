"""The record of a checked card: environment, whether all passed, and the README's table."""

from __future__ import annotations

import datetime
import importlib.util
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
MEASURED = REPOSITORY / "tests" / "measured"
MARKS = ("<!-- measured cards: begin -->", "<!-- measured cards: end -->")
# What the checks import beside torch: module and distribution.
NEEDED = {
    "transformers": "transformers", "peft": "peft", "accelerate": "accelerate",
    "bitsandbytes": "bitsandbytes", "safetensors": "safetensors", "PIL": "pillow",
    "numpy": "numpy", "scipy": "scipy", "math_verify": "math-verify[antlr4-13-2]",
    "rapidfuzz": "rapidfuzz", "pydantic": "pydantic", "yaml": "pyyaml", "rich": "rich",
    "matplotlib": "matplotlib", "cachetools": "cachetools", "pytest": "pytest",
    "hypothesis": "hypothesis",
}  # fmt: skip
STAGES = ("sft", "warmup", "align", "rlvr")


def missing_packages() -> list[str]:
    """Return the distributions that are not installed and that the checks need."""
    return [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]


def environment(device: str) -> dict[str, Any]:
    """Return card, driver, versions and commit."""
    import torch

    from prism_lite.version import installed_version

    names = (
        "torch", "triton", "transformers", "peft", "bitsandbytes", "unsloth", "unsloth_zoo",
        "flash_attn",
    )  # fmt: skip
    record = {"card": "CPU", "capability": None, "gib": None}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        record = {
            "card": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "gib": round(properties.total_memory / 2**30, 2),
        }
    return record | {
        "cuda": torch.version.cuda,
        "driver": first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "versions": {name: installed_version(name) for name in names},
        "commit": first_line("git", "rev-parse", "HEAD"),
        "date": datetime.date.today().isoformat(),
    }


def first_line(*command: str) -> str | None:
    """Return the first line that a program prints, or None where it cannot be run."""
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else None


def parse_pytest(output: str) -> dict[str, Any]:
    """Return the counts of pytest's last line, and the names of what failed."""
    lines = output.strip().splitlines()
    counts = {
        word: int(number)
        for number, word in re.findall(
            r"(\d+) (passed|failed|errors?|skipped)", lines[-1] if lines else ""
        )
    }
    failed = [line.split()[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return counts | {"not_passed": failed}


def checks_in(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the checks of a record by name."""
    names = ("gpu tests", "kernels", "micro ", "size ")
    return {name: facts for name, facts in record.items() if name.startswith(names)}


def stages_of(record: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Return seconds of a step by recipe and stage, without stages of which a phase failed.

    On a card the predicted ones are beside them: `prism-lite plan --measured` reads both.
    """
    stages: dict[str, dict[str, dict[str, float]]] = {}
    for name, facts in checks_in(record).items():
        for stage in STAGES:
            phases = [p for p in facts.get("phases", ()) if p["stage"] == stage]
            if phases and not any("error" in phase for phase in phases):
                recipe = stages.setdefault(name.removeprefix("size "), {})
                recipe[stage] = {
                    key: round(sum(phase[key] for phase in phases), 3)
                    for key in ("step_s", "predicted_s")
                    if all(key in phase for phase in phases)
                }
    return stages


def is_good(record: Mapping[str, Any]) -> bool:
    """Return whether something was checked and nothing failed."""
    checks = checks_in(record).values()
    return bool(checks) and not any("error" in facts for facts in checks)


def read_measured(folder: Path = MEASURED) -> list[dict[str, Any]]:
    """Return the records of a folder, by card."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]


def measured_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the README's table of measured cards; a sentence where there is none."""
    if not records:
        return "No card has been measured yet: `make gpu-check` on yours makes the first row."
    head = "| card | recipe | SFT | warm-up | alignment | RLVR | tokens/s | checks | date |"
    rows = [head, "|" + "---|" * 9]
    for record in records:
        checks = checks_in(record)
        num_passed = sum("error" not in facts for facts in checks.values())
        passed = f"{num_passed} of {len(checks)} passed"
        gib = "" if record["gib"] is None else f" ({record['gib']:.0f} GiB)"
        for name, facts in checks.items():
            if not name.startswith("size "):
                continue
            cells = [_stage_cell(facts, stage) for stage in STAGES]
            speeds = [d["tokens_per_s"] for d in facts.get("decode", ()) if "tokens_per_s" in d]
            cells.append(f"{max(speeds):.0f}" if speeds else "not run")
            row = [f"{record['card']}{gib}", name.removeprefix("size "), *cells, passed]
            rows.append("| " + " | ".join([*row, record["date"]]) + " |")
    return "\n".join(rows)


def _stage_cell(facts: Mapping[str, Any], stage: str) -> str:
    """Return seconds of a stage's step and the peak of the card's memory, reserved."""
    phases = [p for p in facts.get("phases", ()) if p["stage"] == stage]
    if not phases:
        return "not run"
    if any("error" in phase for phase in phases):
        return "failed"
    text = f"{sum(phase['step_s'] for phase in phases):.1f} s"
    peaks = [phase["reserved_gib"] for phase in phases if phase.get("reserved_gib") is not None]
    return f"{text}, {max(peaks):.1f} GiB" if peaks else text


def slug(card: str) -> str:
    """Return a file name for a card: "NVIDIA GeForce RTX 4090" is nvidia-geforce-rtx-4090."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
