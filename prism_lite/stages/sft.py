"""Stage 1, SFT: the policy imitates public demonstrations, completion tokens only.

METHOD section 1: the resulting policy has drifted; alignment and RLVR correct it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from prism_lite.config import OptimConfig
from prism_lite.models.adapters import read_adapter
from prism_lite.models.backbone import Backbone
from prism_lite.models.optim import Optimizer, learning_rate_at, optimizer_step
from prism_lite.models.packing import Tree, pack_trees, split_trees
from prism_lite.policy.logprobs import predicted_logprobs
from prism_lite.processes import share_work
from prism_lite.seeding import samples_at
from prism_lite.stages.alarms.stage import Alarms
from prism_lite.stages.alarms.supervised import diverged_sft
from prism_lite.stages.context import Context
from prism_lite.types import Sample


def run_sft(context: Context) -> None:
    """Train the policy on `task.sft`, from a fresh adapter or from `sft.start_from`."""
    config = context.config.sft
    if config.start_from is not None:
        adapter = read_adapter(config.start_from, context.config.lora)
        context.backbone.load_adapter_state(adapter)
    imitate(
        context,
        "sft",
        context.task.sft,
        lambda sample: sample.demonstration or "",
        num_steps=config.steps,
        batch_size=config.batch_size,
        optim=config.optim,
    )


def run_teacher_sft(context: Context) -> None:
    """Train the SFT policy on `task.align`'s teacher completions (`align.method: sft`)."""
    config = context.config.align
    context.load_policy("sft")
    imitate(
        context,
        "align",
        context.task.align,
        lambda sample: sample.teacher_parts.render(),
        num_steps=config.steps,
        batch_size=config.prompts_per_step,
        optim=config.optim,
    )


def imitate(
    context: Context,
    stage: str,
    rows: Sequence[Sample],
    completion_of: Callable[[Sample], str],
    *,
    num_steps: int,
    batch_size: int,
    optim: OptimConfig,
) -> None:
    """Train the current policy on the rows' completions, and save it as a stage."""
    backbone, run = context.backbone, context.run
    optimizer = context.optimizer(optim)
    name = f"{stage}.optim.learning_rate"
    alarms, losses = Alarms(run, stage), []
    vocab_size = backbone.core.config.text_config.vocab_size
    for step in context.steps(stage, num_steps, {"policy": optimizer}):
        started_s = time.perf_counter()
        run.batch = samples_at(rows, step, batch_size, context.config.seed, stage)
        trees = [
            Tree(backbone.prompt(sample), (backbone.tokenize(completion_of(sample)),))
            for sample in run.batch
        ]
        metrics = sft_step(
            backbone,
            optimizer,
            trees,
            learning_rate=learning_rate_at(optim, step, num_steps),
            max_grad_norm=optim.max_grad_norm,
        )
        num_trained = sum(tree.num_tokens for tree in trees)
        if not losses:  # of a resumed stage
            losses = [line["loss"] for line in run.metrics(stage) if "loss" in line]
        losses.append(metrics["loss"])
        grad_norm = metrics.get("grad_norm", math.inf)  # not known where float16 overflowed
        diverged = diverged_sft(losses, grad_norm, vocab_size=vocab_size, optim=name)
        metrics |= alarms.report([diverged], step)
        metrics["train_tokens_per_s"] = num_trained / (time.perf_counter() - started_s)
        run.log(stage, step, metrics)
    run.save_final(stage, {"policy": backbone.adapter_state()})


def sft_step(
    backbone: Backbone,
    optimizer: Optimizer,
    trees: Sequence[Tree],
    *,
    learning_rate: float,
    max_grad_norm: float,
) -> dict[str, float]:
    """Take one optimizer step on the mean negative log-prob of the completions' tokens.

    Returns:
        loss, num_tokens (of the completions), learning_rate, and the metrics of `optimizer_step`.
    """
    num_tokens = sum(len(branch) for tree in trees for branch in tree.branches)

    def backward(shared: Sequence[Tree]) -> list[float]:
        losses = []
        for packed in split_trees(shared, backbone.config.max_pack_tokens):
            logprob_N = predicted_logprobs(backbone, pack_trees(packed))
            loss = -logprob_N.sum() / num_tokens
            optimizer.backward(loss)
            losses.append(float(loss.detach()))
        return losses

    loss = sum(share_work(trees, backward))
    stepped = optimizer_step(optimizer, backbone.policy_parameters(), learning_rate, max_grad_norm)
    return {"loss": loss, **stepped, "num_tokens": num_tokens, "learning_rate": learning_rate}
