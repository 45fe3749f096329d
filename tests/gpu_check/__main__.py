"""Check a card in two parts of at most six minutes, without network.

    python -m tests.gpu_check --random                                 both parts on this machine's card
    python -m tests.gpu_check --random --part one                      the first part alone
    python -m tests.gpu_check --random --device cpu --small --out DIR  tries the program itself anywhere

Part one: the tests marked `gpu`, kernels against the reference with the vocabulary of Qwen3-VL, and the
micro pipeline (all stages, resume, export, chat) in bfloat16 and in float16 with the loss scaler, with
Unsloth too where it is installed. Part two: Qwen3-VL at full size, its weights random and made on the card:
a step of every stage beside the planner's prediction, tokens a second, bandwidth.

Every check is a process with a limit of its own; what fails is recorded with its reason. The result is
OUT/CARD.json. gradio, trl and datasets are not needed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.gpu_check.record import (
    MEASURED,
    REPOSITORY,
    environment,
    is_good,
    measured_table,
    missing_packages,
    read_measured,
    slug,
    stages_of,
)

_SLOWER_CPU = (
    6  # limits on a CPU, where the program is only tried, are so many times those of a card
)
RECIPES = ("rtx3060-2b", "rtx4090-4b", "a100-8b")  # 2B, 4B and 8B
TESTS = (  # all that have tests for a card; a folder is named where nothing in it needs more than NEEDED
    "tests/gpu",
    "tests/kernels/ops",
    "tests/unit/models/test_attention_operators.py",
    "tests/unit/sampling/test_decoder.py",
    "tests/unit/sampling/test_token_step.py",
)


@dataclass(frozen=True)
class Check:
    """A process with a limit.

    Attributes:
        name: of the check in the record.
        arguments: of `python -m`.
        limit_s: seconds after which it is ended; what it has recorded until then counts.
    """

    name: str
    arguments: tuple[str, ...]
    limit_s: int


def checks_of(
    part: str, recipes: Sequence[str], *, has_bfloat16: bool, has_unsloth: bool
) -> list[Check]:
    """Return the checks of a part; their limits add up to six minutes at most."""
    measure = "tests.gpu_check.measure"
    if part == "one":
        pytest = ("pytest", "-m", "gpu", "-q", "-rfE", "-p", "no:cacheprovider", *TESTS)
        dtypes = ("bfloat16", "float16") if has_bfloat16 else ("float16",)
        micro = [Check(f"micro {dtype}", (measure, "micro", dtype), 70) for dtype in dtypes]
        if has_unsloth:
            micro.append(Check("micro unsloth", (measure, "micro", "auto", "unsloth"), 80))
        return [
            Check("gpu tests", pytest, 90),
            Check("kernels", (measure, "kernels"), 50),
            *micro,
        ]
    return [Check(f"size {name}", (measure, "size", name), 360 // len(recipes)) for name in recipes]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", choices=("one", "two"), help="default: both")
    parser.add_argument("--random", action="store_true", help="full sizes with random weights")
    parser.add_argument(
        "--recipe", action="append", metavar="NAME",
        help=f"sizes of part two, given once for each; default: {', '.join(RECIPES)}",
    )  # fmt: skip
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes for trying the program")
    parser.add_argument("--out", type=Path, default=MEASURED, help="folder of the JSON file")
    parser.add_argument("--table", action="store_true", help="print the README's table and stop")
    options = parser.parse_args(arguments)
    if options.table:
        print(measured_table(read_measured(options.out)))
        return 0
    if missing := missing_packages():
        print(
            f"gpu-check: missing {', '.join(missing)}. With network: pip install {' '.join(missing)}; "
            "without: copy their wheels here and pip install --no-index them. gradio, trl and "
            "datasets are not needed."
        )
        return 2
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check: torch finds no NVIDIA card here, so there is nothing to check.")
        return 2
    record = environment(options.device)
    recipes = options.recipe or [name for name in RECIPES if fits(name, record["gib"])]
    record |= {"random": options.random, "small": options.small}
    for part in ("one", "two") if options.part is None else (options.part,):
        has_unsloth = bool(record["versions"]["unsloth"]) and options.device == "cuda"
        has_bfloat16 = record["capability"] is None or float(record["capability"]) >= 8
        checks = checks_of(part, recipes, has_bfloat16=has_bfloat16, has_unsloth=has_unsloth)
        record |= run_part(part, checks, options)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{slug(record['card'])}.json"
    if options.part is not None and file.exists():  # the other part was run before
        record = json.loads(file.read_text(encoding="utf-8")) | record
    record["stages"] = stages_of(record)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(measured_table([record]))
    print(f"written: {file}")
    return 0 if is_good(record) else 1


def fits(recipe: str, gib: float | None) -> bool:
    """Return whether a recipe is for a card of this memory or less; all are tried on a CPU."""
    from prism_lite.recipe import load_recipe

    return gib is None or 0.9 * load_recipe(recipe).model.min_gpu_gib <= gib


def run_part(part: str, checks: Sequence[Check], options: argparse.Namespace) -> dict[str, Any]:
    """Run the checks of a part; return their records and the part's seconds."""
    record: dict[str, Any] = {}
    started_s = time.monotonic()
    for check in checks:
        if check.name == "gpu tests" and options.device == "cpu":
            continue  # they need a card
        if options.device == "cpu":
            check = replace(check, limit_s=_SLOWER_CPU * check.limit_s)
        print(f"{check.name} (at most {check.limit_s} s)", flush=True)
        record[check.name] = run_check(check, options)
        print(json.dumps(record[check.name])[:2000], flush=True)
    return record | {f"part {part} s": round(time.monotonic() - started_s, 1)}


def run_check(check: Check, options: argparse.Namespace) -> dict[str, Any]:
    """Run one check in a process of its own; return what it recorded, with an error where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "record.json"
        command = [sys.executable, "-m", *check.arguments]
        if check.name != "gpu tests":
            command += ["--device", options.device, "--record", str(file)]
            command += ["--small"] if options.small else []
            command += ["--random"] if options.random else []
        started_s, error = time.monotonic(), None
        try:
            returncode, output, errors = run_group(command, check.limit_s)
            if returncode:
                error = (errors.strip() or output.strip())[-2000:]
        except subprocess.TimeoutExpired:
            output, error = "", f"not finished after {check.limit_s} s"
        facts = json.loads(file.read_text()) if file.exists() else {}
    if check.name == "gpu tests":
        from tests.gpu_check.record import parse_pytest

        facts = parse_pytest(output)
        error = None if facts.get("passed") and not facts["not_passed"] else error or output[-2000:]
    facts["seconds"] = round(time.monotonic() - started_s, 1)
    return facts | ({"error": error} if error else {})


def run_group(command: Sequence[str], limit_s: float) -> tuple[int, str, str]:
    """Run a command; return its exit status, stdout and stderr.

    The processes that it has started end with it, however it ends.

    Raises:
        subprocess.TimeoutExpired: it took longer than `limit_s`.
    """
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    ) as process:  # fmt: skip
        try:
            output, errors = process.communicate(timeout=limit_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output, errors


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
