"""The shared-prefix engine against transformers, TRL and the official discriminator arrangement.

`python -m tests.bench engine` runs all parts; `python -m tests.bench engine rollouts --repeats 5` one:
rollouts (a), grpo (b), discriminator (c), passes (d), growth (e). Each part leaves its figures in
OUT/engine.json (default runs/bench/) and the table and the plot OUT/engine.png show all that are there;
`--prompts 768` restricts (a) to (d) to one length.
On a CPU with a tiny Qwen3-VL of random weights; every figure is the median of paired runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.bench import engine_parts, engine_plot
from tests.bench.engine_cases import GROUP_SIZE, WIDE_VOCABULARY, make_backbone

PROMPTS = (256, 768, 2048)
GROUPS = (2, 4, 8, 16, 32, 64)
LONG_PROMPTS = (128, 256, 512, 1024, 2048, 4096)
Figures = dict[str, dict[str, float]]


def _rollouts(repeats: int, prompts: Sequence[int]) -> Figures:
    backbone = make_backbone()
    found = {str(n): engine_parts.rollouts(backbone, n, repeats) for n in prompts}
    if 768 in prompts:
        wide = make_backbone(vocabulary=WIDE_VOCABULARY)
        found["768 wide"] = engine_parts.rollouts(wide, 768, repeats)
        quantised = make_backbone(quantization="nf4")
        found["768 nf4"] = engine_parts.rollouts(quantised, 768, repeats)
    return found


def _grpo(repeats: int, prompts: Sequence[int]) -> Figures:
    from tests.bench.engine_trl import grpo

    def both(**settings: Any) -> tuple[Any, Any]:
        return make_backbone(**settings), make_backbone(**settings)

    found = {str(n): grpo(*both(), n, repeats) for n in prompts}
    if 768 in prompts:
        found["768 wide"] = grpo(*both(vocabulary=WIDE_VOCABULARY), 768, repeats)
    return found


def _discriminator(repeats: int, prompts: Sequence[int]) -> Figures:
    backbone = make_backbone()
    return {str(n): engine_parts.discriminator(backbone, n, repeats) for n in prompts}


def _passes(_repeats: int, prompts: Sequence[int]) -> Figures:
    backbone = make_backbone()
    return {str(n): engine_parts.passes(backbone, n) for n in prompts}


def _growth(repeats: int, _prompts: Sequence[int]) -> Figures:
    backbone = make_backbone()
    found = {f"G {g}": engine_parts.growth(backbone, 768, g, repeats) for g in GROUPS}
    for n in LONG_PROMPTS:
        found[f"P {n}"] = engine_parts.growth(backbone, n, GROUP_SIZE, repeats)
    return found


PARTS: dict[str, Callable[[int, Sequence[int]], Figures]] = {
    "rollouts": _rollouts,
    "grpo": _grpo,
    "discriminator": _discriminator,
    "passes": _passes,
    "growth": _growth,
}


def slope(figures: Figures, axis: str, name: str, above: float = 0.0) -> float:
    """Exponent between the smallest and the largest: 1 is linear growth."""
    points = sorted(
        (float(key.split()[1]), values[name])
        for key, values in figures.items()
        if key.startswith(axis) and float(key.split()[1]) >= above
    )
    (low, first), (high, last) = points[0], points[-1]
    return math.log(last / first) / math.log(high / low)


def table(found: dict[str, Figures]) -> list[str]:
    """Markdown: one line per comparison."""
    lines = ["| | theirs | ours | |", "|---|---|---|---|"]
    for case, f in found.get("rollouts", {}).items():
        lines.append(
            f"| (a) rollouts, {case} | {f['theirs_tokens_per_s']:.0f} tokens/s "
            f"| {f['ours_tokens_per_s']:.0f} tokens/s | {f['ratio']:.1f}x |"
        )
    for case, f in found.get("grpo", {}).items():
        lines.append(
            f"| (b) GRPO step, {case} | {f['theirs_s']:.2f} s, {f['theirs_mib']:.0f} MiB "
            f"| {f['ours_s']:.2f} s, {f['ours_mib']:.0f} MiB "
            f"| {f['ratio']:.1f}x, {f['memory_share']:.0%} of the memory |"
        )
    for case, f in found.get("discriminator", {}).items():
        lines.append(
            f"| (c) discriminator step, {case} | {f['theirs_s']:.2f} s, {f['theirs_mib']:.0f} MiB "
            f"| {f['ours_s']:.2f} s ({f['ours_seen_s']:.2f} s seen), {f['ours_mib']:.0f} MiB "
            f"| {f['ratio']:.1f}x ({f['ratio_decoder']:.1f}x decoder, {f['ratio_seen']:.1f}x seen) |"
        )
    for case, f in found.get("passes", {}).items():
        lines.append(
            f"| (d) token passes over the floor, {case} | | rollouts {f['rollouts']:.3f}, "
            f"policy {f['policy']:.3f}, discriminator {f['discriminator']:.3f} | |"
        )
    if "growth" in found:
        figures = found["growth"]
        for axis, label in (("G", "G 2 to 64"), ("P", "prompt 128 to 4,096")):
            lines.append(
                f"| (e) exponent of growth, {label} | | time {slope(figures, axis, 's'):.2f}, "
                f"memory {slope(figures, axis, 'mib'):.2f} | |"
            )
    return lines


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench engine", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default all")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--repeats", type=int, default=5, help="paired runs of each comparison")
    parser.add_argument("--prompts", type=int, nargs="*", default=PROMPTS, help="tokens, parts a-d")
    chosen = parser.parse_args(arguments)
    unknown = set(chosen.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / "engine.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for part in chosen.parts or PARTS:
        figures = PARTS[part](chosen.repeats, chosen.prompts)
        found[part] = found.get(part, {}) | figures
        path.write_text(json.dumps(found, indent=1))
    print(
        f"\nengine: picture + text prompts, G = {GROUP_SIZE}, 64-token completions, float32, "
        f"{torch.get_num_threads()} CPU threads; medians of {chosen.repeats} paired runs\n"
    )
    print("\n".join(table(found)))
    print(f"\nplot: {engine_plot.plot(found, chosen.out / 'engine.png')}")
