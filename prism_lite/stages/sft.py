"""Stage 1, SFT: the policy imitates public demonstrations, completion tokens only.

METHOD section 1: the policy that comes out has drifted; the stages behind it mend that.
"""

from __future__ import annotations

import time

from prism_lite.checkpoint import Trained
from prism_lite.logprobs import pack_logprobs
from prism_lite.models.adapters import read_adapter
from prism_lite.models.packing import Tree, pack_trees, split_trees
from prism_lite.optim import learning_rate_at, make_optimizer, optimizer_step
from prism_lite.run_folder import peak_gib
from prism_lite.seeding import batch_at
from prism_lite.stages.context import Context


def run_sft(context: Context) -> None:
    """Train the policy on `task.sft`, from the backbone as it is or from `sft.start_from`."""
    config, backbone, run, task = (
        context.config.sft,
        context.backbone,
        context.run,
        context.task,
    )
    if config.start_from is not None:
        backbone.load_adapter_state(read_adapter(config.start_from, context.config.lora))
    parameters = backbone.policy_parameters()
    optimizer = make_optimizer(parameters, config.optim, scales_loss=backbone.precision.scales_loss)
    start = context.resume("sft", {"policy": optimizer})

    def trained() -> Trained:
        return Trained({"policy": backbone.adapter_state()}, {"policy": optimizer})

    for step in run.steps("sft", start, config.steps, trained):
        started_s = time.perf_counter()
        samples = batch_at(task.sft, step, config.batch_size, context.config.seed, "sft")
        trees = [
            Tree(
                backbone.prompt(sample, task.system_prompt),
                (backbone.tokenize(sample.demonstration or ""),),
            )
            for sample in samples
        ]
        num_tokens = sum(len(branch) for tree in trees for branch in tree.branches)
        loss = 0.0
        for packed in split_trees(trees, backbone.config.max_pack_tokens):
            pack = pack_trees(packed)
            logprob_N = pack_logprobs(backbone.core, pack, backbone.hidden_states(pack))
            pack_loss = -logprob_N.sum() / num_tokens
            optimizer.backward(pack_loss)
            loss += float(pack_loss.detach())
        learning_rate = learning_rate_at(config.optim, step, config.steps)
        stepped = optimizer_step(optimizer, parameters, learning_rate, config.optim.max_grad_norm)
        step_time = time.perf_counter() - started_s
        run.log(
            "sft",
            step,
            {
                "loss": loss,
                **stepped,
                "learning_rate": learning_rate,
                "num_tokens": num_tokens,
                "step_time": step_time,
                "train_tokens_per_s": sum(tree.num_tokens for tree in trees) / step_time,
                "mem/peak_gib": peak_gib(),
            },
        )
    run.save_final("sft", {"policy": backbone.adapter_state()})
