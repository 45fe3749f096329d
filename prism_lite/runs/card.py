"""The model card, README.md of a run folder: what ran, figures with intervals, how to use the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prism_lite.config import RunConfig
from prism_lite.data.task import system_prompt_of
from prism_lite.files import read_json, write_text
from prism_lite.models.families.qwen3_vl import NOT_QUANTISED
from prism_lite.runs.changes import change_rows
from prism_lite.runs.drift_report import drift_section
from prism_lite.runs.folder import RunFolder
from prism_lite.runs.inputs import accepted_changes
from prism_lite.runs.report import INSIDE, markdown_rows, markdown_table, reward_name

_WORK = {
    "sft": "SFT on demonstrations",
    "control": "RLVR alone, as a control",
    "warmup": "warm-up of the discriminator",
    "align": "alignment",
    "rlvr": "RLVR (reinforcement learning with verifiable rewards)",
}
_ALIGNMENT = {
    "adversarial": "adversarial alignment (PRISM, arXiv 2604.28123)",
    "dpo": "alignment by DPO on the teacher's completions",
    "sft": "alignment by SFT on the teacher's completions",
    "best_of_n": "alignment by imitating the best of several rollouts",
}


def write_model_card(folder: RunFolder) -> None:
    """Write README.md of the run folder; nothing where the pipeline has not written env.json."""
    if not (folder.path / "env.json").is_file():
        return
    environment = folder.read("env.json", "the next session writes it again")
    if not environment:
        return
    peaks = [line["mem/peak_gib"] for line in folder.metrics() if "mem/peak_gib" in line]
    config, results = folder.config, folder.results()
    finished = [stage for stage in _WORK if folder.is_done(stage)]
    title = f"{folder.path.absolute().name}: {config.model.name}, recipe {config.recipe}"
    version = environment["prism_lite"] or "not installed"
    command = (environment.get("command") or "from Python").replace("|", "\\|")  # a cell of a table
    packages = [f"{name} {text}" for name, text in environment["packages"].items() if text]
    text = f"""{front_matter(config, library="peft")}# {title}

{describe_training(config, finished)} Adapters (LoRA, rank {config.lora.rank}) on a frozen \
{config.model.quantization} backbone.

{markdown_table(results)}

{_about_figures(config, results)}
{_changes_section(folder)}
{_evaluated_inside(folder, results)}{drift_section(results)}
| | |
|---|---|
| command | `{command}` |
| prism_lite | {version}, commit {environment["git_commit"] or "unknown"} |
| model | {config.model.name}, revision {environment.get("model_revision") or "none recorded"} |
| pictures | {config.model.min_pixels} to {config.model.max_pixels} pixels |
| device | {environment["device"]} |
| peak memory | {f"{max(peaks):.2f} GiB" if peaks else "not measured"} |
| training time | {sum(results.get("seconds", {}).values()):.0f} s |
| seed | {config.seed} |
{_rewards_row(config, finished)}| packages | {", ".join(packages)} |
| data | {environment["data"] or config.data.task} |
{_changed_inputs(folder)}
{prompt_section(config)}
{_plots_section(folder)}
{_usage(folder, environment["compute_dtype"])}"""
    write_text(folder.path / "README.md", text)


def front_matter(config: RunConfig, *, library: str) -> str:
    """Return the YAML block that the hub reads.

    Args:
        library: "peft" for an adapter, "transformers" for merged weights.
    """
    base = "" if config.model.name == "tiny" else f"base_model: {config.model.name}\n"
    return f"""---
library_name: {library}
pipeline_tag: image-text-to-text
{base}tags: [prism, qlora, qwen3-vl]
---
"""


def describe_training(config: RunConfig, finished: Sequence[str]) -> str:
    """Say in a sentence which stages have run."""
    work = _WORK | {"align": _ALIGNMENT[config.align.method]}
    num_steps = {"sft": config.sft.steps, "align": config.align.steps, "rlvr": config.rlvr.steps}
    names = [work[stage] for stage in finished if num_steps.get(stage, 1)]
    return f"Trained with prism_lite: {', '.join(names) or 'no stage has finished'}."


def prompt_section(config: RunConfig) -> str:
    """Return the system prompt in a block of code, so that its tags survive Markdown."""
    prompt = system_prompt_of(config)
    return f"System prompt:\n\n```text\n{prompt}\n```\n" if prompt else "No system prompt.\n"


def _changed_inputs(folder: RunFolder) -> str:
    """Return a row of the table on inputs that changed between sessions, if any."""
    changes = accepted_changes(folder.path)
    return f"| changed between sessions | {'; '.join(changes)} |\n" if changes else ""


def _about_figures(config: RunConfig, results: Mapping[str, Any]) -> str:
    if not results.get("stages"):
        return ""
    return (
        f"n = {results['n']} held-out prompts, {config.eval.num_samples} completions each and a greedy "
        "one; in parentheses the 95 % interval over the prompts."
    )


def _rewards_row(config: RunConfig, finished: Sequence[str]) -> str:
    if not {"rlvr", "control"} & set(finished):
        return ""
    return (
        f"| rewards | {', '.join(_reward_text(*item) for item in config.rlvr.rewards.items())} |\n"
    )


def _changes_section(folder: RunFolder) -> str:
    """Return what each stage changed, as Markdown; "" if fewer than two were evaluated."""
    rows = change_rows(folder.path, rlvr_start=folder.config.rlvr.start, as_range=True)
    if not rows:
        return ""
    how = "Differences paired by prompt, with 95 % intervals over the prompts; * excludes zero."
    return f"\n{markdown_rows(rows)}\n\n{how}"


def _evaluated_inside(folder: RunFolder, results: Mapping[str, Any]) -> str:
    """Say which policies the stages handed on, and where the curves are; "" without evaluations."""
    if not any(name in line for line in folder.metrics() for name in INSIDE):
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


def _reward_text(key: str, weight: float) -> str:
    source = f" (`{Path(key).name}`)" if ":" in key else ""  # config.yaml has the folder
    return f"{weight:g} {reward_name(key)}{source}"


def _plots_section(folder: RunFolder) -> str:
    """Return the plots, results first, and how to compare those of two runs; "" where there are none."""
    names = [
        name for name in ("results", *_WORK) if (folder.path / "plots" / f"{name}.png").is_file()
    ]
    if not names:
        return ""
    pictures = "\n".join(f"![{name}](plots/{name}.png)" for name in names)
    return f"""Curves are moving averages with the steps drawn faintly. To compare with another run on \
the same held-out rows, put the two README.md side by side: `results` and the panels of shares have the \
same axes in every run. A run is better if its interval in `results` is higher and does not overlap; a \
higher reward without a higher eval/accuracy is not a gain.

{pictures}
"""


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

PEFT raises an ImportError beside torchao older than 0.16: `pip uninstall torchao`.

On a CPU with AVX512-BF16, bitsandbytes rounds activations to bfloat16 in evaluation; to get exactly the
answers of `prism-lite eval`, set `support_avx512bf16_for_cpu = False` on each of its linear layers.
"""
