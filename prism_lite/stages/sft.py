"""Stage 1, SFT: the policy imitates public demonstrations, completion tokens only.

METHOD section 1: the policy that comes out has drifted; the stages behind it mend that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from prism_lite.config import OptimConfig
from prism_lite.models.adapters import read_adapter
from prism_lite.models.backbone import Backbone
from prism_lite.models.optim import Optimizer, learning_rate_at, make_optimizer, optimizer_step
from prism_lite.models.packing import Tree, pack_trees, split_trees
from prism_lite.policy.logprobs import pack_logprobs
from prism_lite.runs.checkpoint import Trained
from prism_lite.seeding import batch_at
from prism_lite.stages.context import Context
from prism_lite.types import Sample


def run_sft(context: Context) -> None:
    """Train the policy on `task.sft`, from the backbone as it is or from `sft.start_from`."""
    config = context.config.sft
    if config.start_from is not None:
        given = read_adapter(config.start_from, context.config.lora)
        context.backbone.load_adapter_state(given)
    imitate(
        context,
        "sft",
        context.task.sft,
        lambda sample: sample.demonstration or "",
        num_steps=config.steps,
        batch_size=config.batch_size,
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
    """Train the policy as it is on completions: mean negative log-prob of their tokens."""
    backbone, run = context.backbone, context.run
    optimizer = make_optimizer(
        backbone.policy_parameters(), optim, scales_loss=backbone.precision.scales_loss
    )
    start = context.resume(stage, {"policy": optimizer})

    def trained() -> Trained:
        return Trained({"policy": backbone.adapter_state()}, {"policy": optimizer})

    for step in run.steps(stage, start, num_steps, trained):
        started_s = time.perf_counter()
        samples = batch_at(rows, step, batch_size, context.config.seed, stage)
        trees = [
            Tree(
                backbone.prompt(sample),
                (backbone.tokenize(completion_of(sample)),),
            )
            for sample in samples
        ]
        learning_rate = learning_rate_at(optim, step, num_steps)
        metrics = sft_step(
            backbone,
            optimizer,
            trees,
            learning_rate=learning_rate,
            max_grad_norm=optim.max_grad_norm,
        )
        step_time = time.perf_counter() - started_s
        run.log(
            stage,
            step,
            metrics
            | {
                "learning_rate": learning_rate,
                "train_tokens_per_s": sum(tree.num_tokens for tree in trees) / step_time,
            },
        )
    run.save_final(stage, {"policy": backbone.adapter_state()})


def sft_step(
    backbone: Backbone,
    optimizer: Optimizer,
    trees: Sequence[Tree],
    *,
    learning_rate: float,
    max_grad_norm: float,
) -> dict[str, float]:
    """One optimizer step on completions: mean negative log-prob of their tokens, over packs.

    Returns:
        loss, num_tokens (of the completions), and what `optimizer_step` gives.
    """
    num_tokens = sum(len(branch) for tree in trees for branch in tree.branches)
    loss = 0.0
    for packed in split_trees(trees, backbone.config.max_pack_tokens):
        pack = pack_trees(packed)
        logprob_N = pack_logprobs(backbone.core, pack, backbone.hidden_states(pack))
        pack_loss = -logprob_N.sum() / num_tokens
        optimizer.backward(pack_loss)
        loss += float(pack_loss.detach())
    stepped = optimizer_step(optimizer, backbone.policy_parameters(), learning_rate, max_grad_norm)
    return {"loss": loss, **stepped, "num_tokens": num_tokens}


def run_teacher_sft(context: Context) -> None:
    """Train the SFT policy on `task.align`'s teacher completions."""
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
