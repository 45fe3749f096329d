"""Export a trained policy as an ordinary Qwen3-VL folder, or the discriminator as a reward function.

`export_merged` merges, reloads what it wrote, compares it with the trained policy on held-out prompts and
refuses a folder that does not agree; the distances are written to export.json and the model card.
`export_discriminator` writes a folder for `reward_function.discriminator_reward`.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from prism_lite.config import RunConfig
from prism_lite.console import say
from prism_lite.data.task import load_heldout, load_task, system_prompt_of
from prism_lite.deploy.load import last_stage, load_stage
from prism_lite.deploy.merge import (
    MERGE_TOLERANCE,
    Completion,
    Distance,
    Weights,
    distance,
    merge_policy,
    reload_logprobs,
    trained_logprobs,
)
from prism_lite.digits.base_model import base_folder
from prism_lite.discriminator.model import save_discriminator
from prism_lite.files import read_json, write_json, write_text
from prism_lite.models.backbone import TRUNK, Backbone
from prism_lite.recipe import read_run, to_dict
from prism_lite.runs import card, report
from prism_lite.runs.checkpoint import disk_errors, load_final
from prism_lite.runs.environment import package_versions
from prism_lite.sampling.rollouts import sample_groups

_NUM_CHECKED = 16  # held-out prompts, one completion each
DISTANCE_BOUND = 0.1  # nats, mean over tokens, between the merged and the trained policy
_MAX_SHARD_SIZE = "4GB"


def export_merged(
    run_folder: str | Path,
    out: str | Path,
    *,
    stage: str | None = None,
    weights: Weights = "original",
    bound: float = DISTANCE_BOUND,
    console: Console | None = None,
) -> dict[str, Any]:
    """Write a stage's policy as full weights that `AutoModelForImageTextToText` loads.

    Args:
        out: a folder that does not exist yet.
        stage: default: the last finished one.
        weights: see `merge_policy`.
        bound: largest accepted distance between the merged policy and the trained one, in nats, mean
            over the tokens of sampled completions.

    Returns:
        The content of export.json.

    Raises:
        ValueError: the run or stage does not exist, `out` does, or the distance is above `bound`.
        RuntimeError: the merged weights compute something else than base and adapter.
    """
    console = console or Console()
    config, stage = read_run(run_folder), stage or last_stage(run_folder)
    if stage == "base":
        raise ValueError("--stage base has no adapter: there is nothing to merge.")
    with _new_folder(Path(out)) as folder:
        backbone = load_stage(run_folder, config, stage)
        completions = _held_out_completions(backbone, config)
        trained = trained_logprobs(backbone, completions)
        say(console, f"merging stage {stage} into the {weights} weights of {config.model.name}")

        def save(model: Any) -> None:
            model.save_pretrained(folder, max_shard_size=_MAX_SHARD_SIZE)
            backbone.processor.save_pretrained(save_directory=folder)

        unmerged, dtype = merge_policy(
            backbone, base_folder(config), completions, weights=weights, save=save
        )
        merged = reload_logprobs(folder, backbone.processor.image_processor, completions)
        rounding, change = distance(merged, unmerged), distance(merged, trained)
        tolerance = MERGE_TOLERANCE[dtype]
        _check(rounding, change, tolerance=tolerance, bound=bound)
        record = {
            "base": config.model.name,
            "recipe": config.recipe,
            "stage": stage,
            "weights": weights,
            "dtype": str(dtype).removeprefix("torch."),
            "num_completions": len(completions),
            "merged_against_base_and_adapter": {
                **dataclasses.asdict(rounding),
                "tolerance": tolerance,
            },
            "merged_against_trained": {**dataclasses.asdict(change), "bound": bound},
            "packages": package_versions(),
        }
        write_json(folder / "export.json", record)
        write_text(folder / "README.md", _model_card(Path(run_folder), config, record))
    say(
        console,
        f"verified on {rounding.num_tokens} tokens of {len(completions)} completions: merged against base "
        f"+ adapter {rounding.largest:.1e} nats at most; against the trained policy {change.mean:.3f} nats "
        f"on average, {change.largest:.2f} at most",
    )
    return record


def _held_out_completions(backbone: Backbone, config: RunConfig) -> list[Completion]:
    """Sample completions of the trained policy, on training rows if nothing is held out."""
    task = load_heldout(config)
    if not task.heldout:
        task = load_task(config)
    groups = sample_groups(
        backbone,
        (task.heldout or task.rlvr or task.sft)[:_NUM_CHECKED],
        group_size=1,
        sampling=dataclasses.replace(config.sampling, temperature=1.0),
        seed=(config.seed, "export"),
    )
    return [
        Completion(backbone.prompt(group.sample), group.rollouts[0].token_ids) for group in groups
    ]


def _check(rounding: Distance, change: Distance, *, tolerance: float, bound: float) -> None:
    # `not <=` and not `>`: NaN is refused.
    if not rounding.largest <= tolerance:
        raise RuntimeError(
            f"the merged weights differ from base + adapter by {rounding.largest:.2g} nats on a token, "
            f"more than rounding explains ({tolerance:g}): nothing was written. Please report it with "
            "the output of `prism-lite doctor`."
        )
    if not change.mean <= bound:
        raise ValueError(
            f"the merged policy differs from the trained one by {change.mean:.3f} nats per token, more "
            f"than --bound {bound:g}: nothing was written. The adapter was trained on the NF4 weights: "
            "--weights dequantised merges into exactly those; or accept it with a larger --bound."
        )


def export_discriminator(
    run_folder: str | Path,
    out: str | Path,
    *,
    stage: str | None = None,
    console: Console | None = None,
) -> Path:
    """Write the discriminator with its trunk, for `reward_function.discriminator_reward`.

    Args:
        out: a folder that does not exist yet.
        stage: "warmup" or "align"; default: the last finished one.

    Raises:
        ValueError: the run has no finished discriminator, or `out` exists.
    """
    run_folder, config = Path(run_folder), read_run(run_folder)
    stages = run_folder / "stages"
    done = [name for name in ("warmup", "align") if (stages / name / "final").is_dir()]
    if not done or stage not in (None, *done):
        raise ValueError(f"--run {run_folder}: stage {stage or 'warmup'} is not finished there.")
    stage = stage or done[-1]
    with _new_folder(Path(out)) as folder:
        save_discriminator(
            folder, load_final(stages / stage)["discriminator"], config.discriminator
        )
        if config.discriminator.trunk == "sft":
            backbone = load_stage(run_folder, config, "sft")
            backbone.freeze_copy(TRUNK)
            backbone.save_policy(str(folder / "trunk"))
        settings = to_dict(config)
        needed = {k: settings[k] for k in ("model", "tiny", "lora", "discriminator", "seed")}
        needed["data"] = {"digits": settings["data"]["digits"]}  # identifies the embedded base
        reward = {"settings": needed, "system_prompt": system_prompt_of(config)}
        write_json(folder / "reward.json", reward)
        write_text(folder / "README.md", _discriminator_card(config, stage))
    say(console or Console(), f"discriminator of stage {stage}: {out}")
    return Path(out)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `out` at the end; an error removes it.

    Raises:
        ValueError: `out` exists already, or cannot be created.
    """
    if out.exists():
        raise ValueError(f"--out {out} exists already: name a new folder, or remove it first.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise ValueError(f"--out {out} cannot be created: {error.strerror}.") from error
    unfinished.chmod(0o755)  # only the owner can read a folder of mkdtemp
    try:
        with disk_errors(out):
            yield unfinished
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _model_card(run_folder: Path, config: RunConfig, record: Mapping[str, Any]) -> str:
    adapter, trained = record["merged_against_base_and_adapter"], record["merged_against_trained"]
    adapter_figures, trained_figures = (
        f"{figures['mean']:.2g} | {figures['largest']:.2g}" for figures in (adapter, trained)
    )
    stages = ("sft", "warmup", "align", "rlvr")
    stage = record["stage"]
    before = stages[: stages.index(stage) + 1] if stage in stages else ("sft", "control")
    finished = [s for s in before if (run_folder / "stages" / s / "final").is_dir()]
    environment = read_json(run_folder / "env.json")
    results = read_json(run_folder / "results.json")
    commit = environment["git_commit"] or "unknown"
    head = card.front_matter(config, library="transformers")
    return f"""{head}# {config.model.name}, stage {stage}, merged

{card.describe_training(config, finished)} Recipe {config.recipe}, seed {config.seed}; QLoRA adapters on
{config.model.quantization} weights, merged here into the {record["weights"]} weights ({record["dtype"]}).
Pictures of {config.model.min_pixels} to {config.model.max_pixels} pixels; base revision \
{environment.get("model_revision") or "not recorded"}; prism_lite commit {commit}.
Trained with `{environment.get("command") or "pipeline.run, from Python"}`.

{report.markdown_table(results)}

n = {results.get("n", 0)} held-out prompts, 95 % intervals in parentheses.

The table is of the adapters on the {config.model.quantization} weights, as the run evaluated them. Checked
after the merge, by log-probs (nats) of {adapter["num_tokens"]} tokens in
{record["num_completions"]} completions that the trained policy sampled:

| merged folder, loaded by transformers, against | mean | largest | allowed |
|---|---|---|---|
| base + adapter, unmerged | {adapter_figures} | {adapter["tolerance"]:g} (largest) |
| the policy as trained | {trained_figures} | {trained["bound"]:g} (mean) |

```python
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype="auto", device_map="auto")
processor = AutoProcessor.from_pretrained(FOLDER)  # needs torchvision
```

The policy answers as `<caption>..</caption><think>..</think><answer>..</answer>` when it is given this
system prompt.

{card.prompt_section(config)}"""


def _discriminator_card(config: RunConfig, stage: str) -> str:
    return f"""# Discriminator of {config.model.name}, stage {stage}

Scores the caption (perception) and think + answer (reasoning) of a completion; recipe {config.recipe}.
A reward function for TRL:

```python
from prism_lite.deploy.reward_function import discriminator_reward
reward = discriminator_reward(FOLDER)
trainer = GRPOTrainer(..., reward_funcs=[reward])
```
"""
