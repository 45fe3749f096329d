"""What a finished run shows: the table, plots, the card. Reads the run folder only."""

from __future__ import annotations

from prism_lite.types import EVALUATED_STAGES

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor

from prism_lite.files import write_text
from prism_lite.config import DiscriminatorConfig
from prism_lite.models.families.qwen3_vl import NOT_QUANTISED
from prism_lite.runs.folder import RunFolder

COLUMNS = (
    ("accuracy", "accuracy"),
    ("greedy_accuracy", "greedy accuracy"),
    ("caption_accuracy", "caption accuracy"),
    ("think_validity", "think validity"),
    ("format_rate", "format rate"),
)


def rate_text(figures: Mapping[str, Any], name: str, digits: int = 3) -> str:
    """The figure and half its 95 % interval, as 0.51±0.05; without one 0.51; "-" if not measured."""
    if figures.get(name) is None:
        return "-"
    text = f"{figures[name]:.{digits}f}"
    if name not in figures["ci95"]:
        return text
    low, high = figures["ci95"][name]
    return f"{text}±{(high - low) / 2:.{digits}f}"


def stage_line(stage: str, figures: Mapping[str, Any]) -> str:
    """One line about a stage, for the console."""
    cells = [f"{title} {rate_text(figures, name)}" for name, title in COLUMNS if name in figures]
    return f"[bold]{stage:5}[/] " + ", ".join(cells)


def resume_line(stop: BaseException, given: Sequence[str]) -> str:
    """What a stopped command ends with: what happened, and the line that goes on.

    Args:
        stop: `Stopped` or KeyboardInterrupt.
        given: the arguments of the command.
    """
    happened, resumed = str(stop) or "interrupted", shlex.join(["prism-lite", *given])
    return f"{happened}; resume with: {resumed}"


def results_rows(results: Mapping[str, Any], digits: int = 3) -> list[list[str]]:
    """Header and one row per evaluated stage, as text."""
    rows = [figures_header("stage")]
    for stage in EVALUATED_STAGES:
        figures = results.get("stages", {}).get(stage)
        if figures is None:
            continue
        seconds = figures.get("seconds")
        if stage == "align" and "warmup" in results.get("seconds", {}):
            seconds = (seconds or 0.0) + results["seconds"]["warmup"]
        rows.append(figures_row(stage, {**figures, "seconds": seconds}, digits))
    return rows


def figures_header(first: str) -> list[str]:
    """Titles above `figures_row`."""
    return [first, *(title for _, title in COLUMNS), "mean tokens", "seconds"]


def figures_row(first: str, figures: Mapping[str, Any], digits: int = 3) -> list[str]:
    """One row of a table of figures, as text."""
    return [
        first,
        *(rate_text(figures, name, digits) for name, _ in COLUMNS),
        rate_text(figures, "mean_tokens", 1),
        rate_text(figures, "seconds", 0),
    ]


def results_table(results: Mapping[str, Any]) -> Table:
    """The table that `prism-lite run` ends with."""
    title = f"{results['n']} held-out prompts, 95 % intervals; align includes warm-up"
    return rows_table(results_rows(results, digits=2), title)


def rows_table(rows: Sequence[Sequence[str]], title: str, *, is_tight: bool = False) -> Table:
    """Rows of text, the first one the header, for the console; tight ones without margins."""
    header, *rest = rows
    table = Table(
        title=title,
        box=SIMPLE_HEAD,
        padding=(0, 0 if is_tight else 1, 0, 0),
        show_edge=not is_tight,
    )
    for i, name in enumerate(header):  # titles wrap, figures never do
        width = max((len(row[i]) for row in rest), default=0)
        table.add_column(name, justify="left" if i == 0 else "right", min_width=width)
    for row in rest:
        table.add_row(*row)
    return table


def write_plots(folder: RunFolder) -> None:
    """plots/*.png: losses, rewards, discriminator, and results by stage. Nothing measured, no plot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plots = folder.path / "plots"
    plots.mkdir(exist_ok=True)
    panels = {
        "sft": ("sft", [("loss",)]),
        "warmup": (
            "warmup",
            [
                ("disc/loss",),
                ("disc/pair_accuracy_perception", "disc/pair_accuracy_reasoning"),
                ("disc/router_entropy",),
            ],
        ),
        "align": (
            "align",
            [
                ("disc/pair_accuracy_perception", "disc/pair_accuracy_reasoning"),
                ("disc/grounding_perception", "disc/grounding_reasoning"),
                ("disc/margin_perception", "disc/margin_reasoning"),
                ("malformed_rate",),
            ],
        ),
        "rlvr": (
            "rlvr",
            [
                tuple(f"rewards/{_reward_name(key)}/mean" for key in folder.config.rlvr.rewards),
                ("entropy",),
                ("completions/mean_length",),
                ("frac_reward_zero_std",),
            ],
        ),
    }
    for name, (stage, curves) in panels.items():
        lines = folder.metrics(stage)
        curves = [c for c in curves if any(key in line for key in c for line in lines)]
        if not curves:
            continue
        figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3), squeeze=False)
        for axis, keys in zip(axes[0], curves, strict=True):
            for key in keys:
                points = [(line["step"], line[key]) for line in lines if key in line]
                axis.plot(
                    *zip(*points, strict=True), marker="." if len(points) < 20 else None, label=key
                )
            axis.set_xlabel("step")
            axis.legend(fontsize=7)
            axis.grid(alpha=0.3)
        figure.suptitle(stage)
        figure.tight_layout()
        figure.savefig(plots / f"{name}.png", dpi=110)
        plt.close(figure)
    _plot_results(folder, plt)


def _plot_results(folder: RunFolder, plt: Any) -> None:
    stages = folder.results().get("stages", {})
    shown = [stage for stage in EVALUATED_STAGES if stage in stages]
    if not shown:
        return
    figure, axis = plt.subplots(figsize=(7.5, 3.5))
    names = [(name, title) for name, title in COLUMNS if name in stages[shown[0]]]
    for i, (name, title) in enumerate(names):
        x = [position + 0.08 * (i - len(names) / 2) for position in range(len(shown))]
        values = [stages[stage][name] for stage in shown]
        low = [v - stages[s]["ci95"][name][0] for v, s in zip(values, shown, strict=True)]
        high = [stages[s]["ci95"][name][1] - v for v, s in zip(values, shown, strict=True)]
        axis.errorbar(x, values, yerr=[low, high], fmt="o", capsize=2, label=title)
    axis.set_xticks(range(len(shown)), shown)
    axis.set_ylim(0, 1.02)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(
        fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5)
    )  # beside, never over, a point
    figure.tight_layout()
    figure.savefig(folder.path / "plots" / "results.png", dpi=110)
    plt.close(figure)


def markdown_table(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table."""
    return markdown_rows(results_rows(results))


def markdown_rows(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first one the header, as a Markdown table."""
    header, *rest = rows
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rest])


def write_card(folder: RunFolder, results: Mapping[str, Any]) -> None:
    """README.md of the run folder: the model card."""
    environment = json.loads((folder.path / "env.json").read_text(encoding="utf-8"))
    lines = folder.metrics()
    peaks = [line["mem/peak_gib"] for line in lines if "mem/peak_gib" in line]
    config = folder.config
    wall_s = sum(results.get("seconds", {}).values())
    text = f"""# {folder.path.name}: {config.model.name}, recipe {config.recipe}

Trained with prism_lite: SFT, discriminator warm-up, adversarial alignment (PRISM, arXiv 2604.28123),
RLVR. QLoRA adapters on a frozen {config.model.quantization} backbone.

{markdown_table(results) if results.get("stages") else "Not evaluated: no held-out rows."}

| | |
|---|---|
| device | {environment["device"]} |
| peak memory | {f"{max(peaks):.2f} GiB" if peaks else "not measured"} |
| training time | {wall_s:.0f} s |
| seed | {config.seed} |
| rewards | {", ".join(_reward_text(*item) for item in config.rlvr.rewards.items())} |
| packages | {", ".join(f"{k} {v}" for k, v in environment["packages"].items() if v)} |
| data | {environment["data"] or config.data.task} |

{_usage(folder, environment["compute_dtype"])}"""
    write_text(folder.path / "README.md", text)


def _reward_name(key: str) -> str:
    """Return the name of a key of rlvr.rewards: of a function, what follows the colon."""
    return key.rpartition(":")[2]


def _reward_text(key: str, weight: float) -> str:
    source = f" (`{key}`)" if ":" in key else ""
    return f"{weight:g} {_reward_name(key)}{source}"


def _usage(folder: RunFolder, compute_dtype: str) -> str:
    """How to load policy/ without prism_lite, on the base it was trained on and as it was held."""
    adapter = folder.path / "policy" / "adapter_config.json"
    if not adapter.is_file():
        return "No policy has been trained yet.\n"
    base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
    nf4 = folder.config.model.quantization == "nf4"
    quantisation = f"""nf4 = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.{compute_dtype}, llm_int8_skip_modules={NOT_QUANTISED},
)
"""
    return f"""Use the policy with plain PEFT, on the base it was trained on:

```python
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText{", BitsAndBytesConfig" if nf4 else ""}
{quantisation if nf4 else ""}base = AutoModelForImageTextToText.from_pretrained(
    {base!r}, dtype=torch.{compute_dtype}{", quantization_config=nf4" if nf4 else ""}
)
policy = PeftModel.from_pretrained(base, "policy")
```

On a CPU with AVX512-BF16 bitsandbytes rounds activations to bfloat16 in evaluation; for the very
answers of `prism-lite eval` set `support_avx512bf16_for_cpu = False` on each of its linears.
"""
