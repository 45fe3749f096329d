"""Export a trained policy as an ordinary Qwen3-VL folder that proves what it holds.

`export_merged` merges, reloads what it wrote, compares it with the trained policy on held-out prompts and
refuses a folder that does not agree. `export_discriminator` writes the discriminator as a reward function
(reward_model.py). The numbers go into export.json and the model card.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from prism_lite.config import RunConfig
from prism_lite.data.task import load_heldout, load_task, system_prompt_of
from prism_lite.deploy.load import last_stage, load_stage
from prism_lite.deploy.merge import (
    MERGE_TOLERANCE,
    Distance,
    Spoken,
    Weights,
    distance,
    merge_policy,
    reload_logprobs,
    trained_logprobs,
)
from prism_lite.digits.base_model import base_folder
from prism_lite.discriminator.model import save_discriminator
from prism_lite.models.backbone import TRUNK, Backbone
from prism_lite.recipe import read_run, to_dict
from prism_lite.runs import report
from prism_lite.runs.checkpoint import load_final
from prism_lite.runs.environment import PACKAGES, installed_version
from prism_lite.sampling.rollouts import sample_groups

NUM_CHECKED = 16  # held-out prompts, one completion each
DISTANCE_BOUND = 0.1  # nats, mean over tokens, between the merged and the trained policy
MAX_SHARD_SIZE = "4GB"


def export_merged(
    run: str | Path,
    out: str | Path,
    *,
    stage: str | None = None,
    weights: Weights = "original",
    bound: float = DISTANCE_BOUND,
    console: Console | None = None,
) -> dict[str, Any]:
    """Write a stage's policy as full weights that `AutoModelForImageTextToText` loads.

    Args:
        run: a run folder.
        out: a folder that does not exist yet.
        stage: default: the last finished one.
        weights: see `merge_policy`.
        bound: refuse when the merged policy is further than this from the trained one, in nats, mean
            over the tokens of sampled completions.

    Returns:
        The content of export.json.

    Raises:
        ValueError: no such run or stage, `out` exists, or the policies are further apart than `bound`.
        RuntimeError: the merged weights do not do what base and adapter do.
    """
    console = console or Console()
    config, stage = read_run(run), stage or last_stage(run)
    if stage == "base":
        raise ValueError("--stage base has no adapter: the base model is already what it is.")
    with _new_folder(Path(out)) as folder:
        backbone = load_stage(run, config, stage)
        spoken = _held_out_completions(backbone, config)
        trained = trained_logprobs(backbone, spoken)
        console.print(f"merging stage {stage} into the {weights} weights of {config.model.name}")

        def save(model: Any) -> None:
            model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
            backbone.processor.save_pretrained(save_directory=folder)

        unmerged, dtype = merge_policy(
            backbone, base_folder(config), spoken, weights=weights, save=save
        )
        merged = reload_logprobs(folder, backbone.processor.image_processor, spoken)
        exact, moved = distance(merged, unmerged), distance(merged, trained)
        record = {
            "base": config.model.name,
            "recipe": config.recipe,
            "stage": stage,
            "weights": weights,
            "dtype": str(dtype).removeprefix("torch."),
            "num_completions": len(spoken),
            "merged_against_base_and_adapter": dataclasses.asdict(exact)
            | {"tolerance": MERGE_TOLERANCE[dtype]},
            "merged_against_trained": dataclasses.asdict(moved) | {"bound": bound},
            "packages": {name: installed_version(name) for name in PACKAGES},
        }
        _check(exact, moved, tolerance=MERGE_TOLERANCE[dtype], bound=bound)
        (folder / "export.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_card(Path(run), config, record), encoding="utf-8")
    console.print(
        f"verified on {exact.num_tokens} tokens of {len(spoken)} completions: merged against base + "
        f"adapter {exact.largest:.1e} nats at most; against the trained policy {moved.mean:.3f} nats on "
        f"average, {moved.largest:.2f} at most"
    )
    return record


def _held_out_completions(backbone: Backbone, config: RunConfig) -> list[Spoken]:
    """Completions that the trained policy samples; of training rows where nothing is held out."""
    task = load_heldout(config)
    if not task.heldout:
        task = load_task(config)
    samples = (task.heldout or task.rlvr or task.sft)[:NUM_CHECKED]
    groups = sample_groups(
        backbone,
        samples,
        group_size=1,
        sampling=dataclasses.replace(config.sampling, temperature=1.0),
        seed=(config.seed, "export"),
    )
    return [Spoken(backbone.prompt(group.sample), group.rollouts[0].token_ids) for group in groups]


def _check(exact: Distance, moved: Distance, *, tolerance: float, bound: float) -> None:
    if not exact.largest <= tolerance:
        raise RuntimeError(
            f"the merged weights differ from base + adapter by {exact.largest:.2g} nats on a token, "
            f"more than rounding explains ({tolerance:g}): nothing was written. Please report it with "
            "`prism-lite doctor`."
        )
    if not moved.mean <= bound:
        raise ValueError(
            f"the merged policy is {moved.mean:.3f} nats a token away from the trained one, more than "
            f"--bound {bound:g}: nothing was written. The adapter was trained on the NF4 weights: "
            "--weights dequantised merges into exactly those; or accept it with a larger --bound."
        )


def export_discriminator(
    run: str | Path, out: str | Path, *, stage: str | None = None, console: Console | None = None
) -> Path:
    """Write the discriminator with its trunk, for `prism_lite.reward_model.discriminator_reward`.

    Args:
        stage: "warmup" or "align"; default: the last finished one.

    Raises:
        ValueError: the run has no finished discriminator, or `out` exists.
    """
    run, config = Path(run), read_run(run)
    done = [s for s in ("warmup", "align") if (run / "stages" / s / "final").is_dir()]
    if not done or stage not in (None, *done):
        raise ValueError(f"--run {run}: stage {stage or 'warmup'} is not finished there.")
    stage = stage or done[-1]
    with _new_folder(Path(out)) as folder:
        save_discriminator(
            folder, load_final(run / "stages" / stage)["discriminator"], config.discriminator
        )
        if config.discriminator.trunk == "sft":
            backbone = load_stage(run, config, "sft")
            backbone.freeze_copy(TRUNK)
            backbone.save_policy(str(folder / "trunk"))
        settings = to_dict(config)
        needed = {k: settings[k] for k in ("model", "tiny", "lora", "discriminator", "seed")}
        needed["data"] = {"digits": settings["data"]["digits"]}  # names the embedded base
        reward = {"settings": needed, "system_prompt": system_prompt_of(config)}
        (folder / "reward.json").write_text(json.dumps(reward, indent=1) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_discriminator_card(config, stage), encoding="utf-8")
    (console or Console()).print(f"discriminator of stage {stage}: {out}")
    return Path(out)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that appears whole or not at all.

    Raises:
        ValueError: it exists already, or cannot be made.
    """
    if out.exists():
        raise ValueError(f"--out {out} exists already: name a new folder, or remove it first.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise ValueError(f"--out {out} cannot be made: {error.strerror}.") from error
    unfinished.chmod(0o755)  # mkdtemp's folders are for the owner alone
    try:
        yield unfinished
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _card(run: Path, config: RunConfig, record: Mapping[str, Any]) -> str:
    against_adapter = record["merged_against_base_and_adapter"]
    against_trained = record["merged_against_trained"]
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    exact, moved = (
        f"{found['mean']:.2g} | {found['largest']:.2g} | {allowed}"
        for found, allowed in (
            (against_adapter, f"{against_adapter['tolerance']:g} (largest)"),
            (against_trained, f"{against_trained['bound']:g} (mean)"),
        )
    )
    base = "" if config.model.name == "tiny" else f"base_model: {config.model.name}\n"
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
{base}tags: [prism, qlora, qwen3-vl]
---
# {config.model.name}, stage {record["stage"]}, merged

Trained with prism_lite, recipe {config.recipe}, seed {config.seed}: SFT, adversarial distribution alignment
(PRISM, arXiv 2604.28123), RLVR, as QLoRA adapters on {config.model.quantization} weights; merged here
into the {record["weights"]} weights ({record["dtype"]}).

{report.markdown_table(results) if results.get("stages") else "Not evaluated: no held-out rows."}

The table is of the adapters on the {config.model.quantization} weights, as the run evaluated them. Checked
after the merge, by log-probs (nats) of {against_adapter["num_tokens"]} tokens in
{record["num_completions"]} completions that the trained policy sampled:

| merged folder, loaded by transformers, against | mean | largest | allowed |
|---|---|---|---|
| base + adapter, unmerged | {exact} |
| the policy as trained | {moved} |

```python
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype="auto", device_map="auto")
processor = AutoProcessor.from_pretrained(FOLDER)  # needs torchvision
```

The policy answers as `<caption>..</caption><think>..</think><answer>..</answer>` when it is given this
system prompt:

> {system_prompt_of(config)}
"""


def _discriminator_card(config: RunConfig, stage: str) -> str:
    return f"""# Discriminator of {config.model.name}, stage {stage}

Scores the caption (perception) and think + answer (reasoning) of a completion; recipe {config.recipe}.
A reward function for TRL:

```python
from prism_lite.recipe import read_run
from prism_lite.deploy.reward_function import discriminator_reward
reward = discriminator_reward(FOLDER)
trainer = GRPOTrainer(..., reward_funcs=[reward])
```
"""
