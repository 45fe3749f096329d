"""Results of a run for its reader: tables, plots and the model card. Reads the run folder only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from prism_lite.config import RunConfig
from prism_lite.files import read_json, write_text
from prism_lite.models.families.qwen3_vl import NOT_QUANTISED
from prism_lite.runs.changes import FIGURES, TITLES, change_rows
from prism_lite.runs.drift_report import drift_section
from prism_lite.runs.folder import RunFolder
from prism_lite.types import EVALUATED_STAGES

RATE_COLUMNS = {
    "accuracy": "accuracy",
    "greedy_accuracy": "greedy accuracy",
    "transfer_accuracy": "transfer accuracy",
    "caption_accuracy": "caption accuracy",
    "think_validity": "think validity",
    "format_rate": "format rate",
}
# Metrics of each stage's plot; those in one tuple share axes.
_INSIDE = (
    "eval/accuracy", "eval/transfer_accuracy", "eval/caption_accuracy", "eval/think_validity",
    "eval/format_rate",
)  # fmt: skip
_PLOTS = {
    "sft": [("loss",), _INSIDE],
    "warmup": [
        ("disc/loss",),
        ("disc/pair_accuracy_perception", "disc/pair_accuracy_reasoning"),
        ("disc/heldout_pair_accuracy_perception", "disc/heldout_pair_accuracy_reasoning"),
        ("disc/router_entropy",),
    ],
    "align": [
        ("disc/pair_accuracy_perception", "disc/pair_accuracy_reasoning"),
        ("disc/heldout_pair_accuracy_perception", "disc/heldout_pair_accuracy_reasoning"),
        ("disc/grounding_perception", "disc/grounding_reasoning"),
        ("disc/margin_perception", "disc/margin_reasoning"),
        ("malformed_rate",),
        _INSIDE,
    ],
    "rlvr": [
        ("entropy",),
        ("completions/mean_length",),
        ("frac_reward_zero_std",),
        _INSIDE,
    ],
}


def stage_line(stage: str, figures: Mapping[str, Any]) -> str:
    """Return one line about a stage for the console."""
    cells = (f"{t} {_figure_text(figures, n)}" for n, t in RATE_COLUMNS.items() if n in figures)
    return f"[bold]{stage:5}[/] " + ", ".join(cells)


def console_rows(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return rows of figures for 80 columns: those of `FIGURES` under their short titles, and seconds."""
    header = rows[0]
    titles = {RATE_COLUMNS[name]: title for name, title in FIGURES.items()} | {"seconds": "seconds"}
    kept = [0, *(i for i, title in enumerate(header) if title in titles)]
    short = [titles.get(header[i], header[i]) for i in kept]
    return [short, *([row[i] for i in kept] for row in rows[1:])]


def figures_header(first: str) -> list[str]:
    """Return the titles of the columns of `figures_row`."""
    return [first, *RATE_COLUMNS.values(), "mean tokens", "seconds"]


def figures_row(first: str, figures: Mapping[str, Any], digits: int = 3) -> list[str]:
    """Return one row of a table of figures, as text."""
    return [
        first,
        *(_figure_text(figures, name, digits) for name in RATE_COLUMNS),
        _figure_text(figures, "mean_tokens", 1),
        _figure_text(figures, "seconds", 0),
    ]


def _figure_text(figures: Mapping[str, Any], name: str, digits: int = 3) -> str:
    """Return a figure and half its 95 % interval, as 0.51±0.05; "-" where it was not measured."""
    if figures.get(name) is None:
        return "-"
    text = f"{figures[name]:.{digits}f}"
    if name not in figures["ci95"]:
        return text
    low, high = figures["ci95"][name]
    return f"{text}±{(high - low) / 2:.{digits}f}"


def _results_rows(results: Mapping[str, Any], digits: int = 3) -> list[list[str]]:
    """Return a header and one row per evaluated stage, as text."""
    rows = [figures_header("stage")]
    for stage in EVALUATED_STAGES:
        figures = results.get("stages", {}).get(stage)
        if figures is None:
            continue
        seconds = figures.get("seconds")
        if stage == "align" and "warmup" in results.get("seconds", {}):
            seconds = (seconds or 0.0) + results["seconds"]["warmup"]
        title = TITLES.get(stage, stage)
        rows.append(figures_row(title, {**figures, "seconds": seconds}, digits))
    return rows


def results_table(results: Mapping[str, Any]) -> Table:
    """Build the table that `prism-lite run` ends with."""
    title = f"{results['n']} held-out prompts, 95 % intervals; align includes warm-up"
    return rows_table(console_rows(_results_rows(results, digits=2)), title)


def changes_table(folder: Path, config: RunConfig) -> Table | None:
    """Build the table of what each stage changed; None if fewer than two stages were evaluated."""
    rows = change_rows(folder, rlvr_start=config.rlvr.start)
    if not rows:
        return None
    return rows_table(rows, "paired by prompt, 95 % intervals; * excludes zero", is_tight=True)


def rows_table(rows: Sequence[Sequence[str]], title: str, *, is_tight: bool = False) -> Table:
    """Build a console table from rows of text, the first one the header; a tight one has no margins."""
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


def markdown_table(results: Mapping[str, Any]) -> str:
    """Return the results as a Markdown table, or say that there are none."""
    if not results.get("stages"):
        return "Not evaluated: no held-out rows."
    return markdown_rows(_results_rows(results))


def markdown_rows(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text, the first one the header, as a Markdown table."""
    header, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([header, "|" + "---|" * len(rows[0]), *rest])


def write_plots(folder: RunFolder) -> None:
    """Write plots/*.png: curves of each stage, results by stage; no plot without measurements."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    (folder.path / "plots").mkdir(exist_ok=True)
    rewards = tuple(f"rewards/{_reward_name(key)}/mean" for key in folder.config.rlvr.rewards)
    rlvr = [rewards, *_PLOTS["rlvr"]]
    for stage, all_panels in (_PLOTS | {"control": rlvr, "rlvr": rlvr}).items():
        lines = folder.metrics(stage)
        panels = [p for p in all_panels if any(name in line for name in p for line in lines)]
        if not panels:
            continue
        figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3), squeeze=False)
        for axis, names in zip(axes[0], panels, strict=True):
            for name in names:
                if not any(name in line for line in lines):
                    continue
                steps = [line["step"] for line in lines if name in line]
                values = [line[name] for line in lines if name in line]
                axis.plot(steps, values, marker="." if len(steps) < 20 else None, label=name)
            axis.set_xlabel("step")
            axis.legend(fontsize=7)
            axis.grid(alpha=0.3)
        figure.suptitle(stage)
        _save(figure, folder, stage, plt)
    _plot_results(folder, plt)


def _plot_results(folder: RunFolder, plt: Any) -> None:
    figures = folder.results().get("stages", {})
    stages = [stage for stage in EVALUATED_STAGES if stage in figures]
    if not stages:
        return
    figure, axis = plt.subplots(figsize=(7.5, 3.5))
    names = [name for name in RATE_COLUMNS if name in figures[stages[0]]]
    for i, name in enumerate(names):
        x = [position + 0.08 * (i - len(names) / 2) for position in range(len(stages))]
        values = [figures[stage][name] for stage in stages]
        low, high = zip(*(figures[stage]["ci95"][name] for stage in stages), strict=True)
        errors = [
            [value - end for value, end in zip(values, low, strict=True)],
            [end - value for value, end in zip(values, high, strict=True)],
        ]
        axis.errorbar(x, values, yerr=errors, fmt="o", capsize=2, label=RATE_COLUMNS[name])
    axis.set_xticks(range(len(stages)), stages)
    axis.set_ylim(0, 1.02)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))  # never over a point
    _save(figure, folder, "results", plt)


def _save(figure: Any, folder: RunFolder, name: str, plt: Any) -> None:
    figure.tight_layout()
    figure.savefig(folder.path / "plots" / f"{name}.png", dpi=110)
    plt.close(figure)


def write_model_card(folder: RunFolder) -> None:
    """Write README.md of the run folder."""
    environment = read_json(folder.path / "env.json")
    peaks = [line["mem/peak_gib"] for line in folder.metrics() if "mem/peak_gib" in line]
    config, results = folder.config, folder.results()
    text = f"""# {folder.path.name}: {config.model.name}, recipe {config.recipe}

Trained with prism_lite: SFT, discriminator warm-up, adversarial alignment (PRISM, arXiv 2604.28123),
RLVR. QLoRA adapters on a frozen {config.model.quantization} backbone.

{markdown_table(results)}

{_changes_section(folder)}
{_evaluated_inside(folder, results)}{drift_section(results)}
| | |
|---|---|
| device | {environment["device"]} |
| peak memory | {f"{max(peaks):.2f} GiB" if peaks else "not measured"} |
| training time | {sum(results.get("seconds", {}).values()):.0f} s |
| seed | {config.seed} |
| rewards | {", ".join(_reward_text(*item) for item in config.rlvr.rewards.items())} |
| packages | {", ".join(f"{k} {v}" for k, v in environment["packages"].items() if v)} |
| data | {environment["data"] or config.data.task} |

{_usage(folder, environment["compute_dtype"])}"""
    write_text(folder.path / "README.md", text)


def _changes_section(folder: RunFolder) -> str:
    """Return what each stage changed, as Markdown; "" if fewer than two were evaluated."""
    rows = change_rows(folder.path, rlvr_start=folder.config.rlvr.start)
    if not rows:
        return ""
    how = "Differences paired by prompt, with 95 % intervals over the prompts; * excludes zero."
    return f"{markdown_rows(rows)}\n\n{how}"


def _evaluated_inside(folder: RunFolder, results: Mapping[str, Any]) -> str:
    """Say which policies the stages handed on, and where the curves are; "" without evaluations."""
    if not any(name in line for line in folder.metrics() for name in _INSIDE):
        return ""
    kept = "".join(
        f"- {stage}: the policy after step {choice['step'] + 1}, the best by {choice['by']}: "
        f"{choice['value']:.3f}; after the last step {choice['last']:.3f}.\n"
        for stage, choice in results.get("kept", {}).items()
    )
    num_prompts = min(
        folder.config.eval.num_inside, results.get("n", folder.config.eval.num_inside)
    )
    return f"""
Every {folder.config.eval.every} steps {num_prompts} of the held-out prompts were evaluated: eval/* in \
plots/.
{kept}"""


def _reward_name(key: str) -> str:
    """Return the name of a key of rlvr.rewards: of a function, what follows the colon."""
    return key.rpartition(":")[2]


def _reward_text(key: str, weight: float) -> str:
    source = f" (`{key}`)" if ":" in key else ""
    return f"{weight:g} {_reward_name(key)}{source}"


def _usage(folder: RunFolder, compute_dtype: str) -> str:
    """Explain how to load policy/ without prism_lite, on the quantised base that it was trained on."""
    adapter = folder.path / "policy" / "adapter_config.json"
    if not adapter.is_file():
        return "No policy has been trained yet.\n"
    base = read_json(adapter)["base_model_name_or_path"]
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

On a CPU with AVX512-BF16, bitsandbytes rounds activations to bfloat16 in evaluation; to get exactly the
answers of `prism-lite eval`, set `support_avx512bf16_for_cpu = False` on each of its linear layers.
"""
