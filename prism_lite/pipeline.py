"""The pipeline: base -> SFT -> warm-up -> alignment -> RLVR, an evaluation after each policy.

A finished stage is never repeated; an unfinished one resumes from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from prism_lite import signals
from prism_lite.config import RunConfig
from prism_lite.config.checks import plays_game
from prism_lite.console import say
from prism_lite.data.task import TaskData, load_task
from prism_lite.digits.base_model import base_folder
from prism_lite.files import cache_folder, make_cache_folder
from prism_lite.models.adapters import read_adapter
from prism_lite.models.backbone import load_backbone
from prism_lite.models.device import check_machine
from prism_lite.output import lasting_output
from prism_lite.processes import (
    broadcast,
    first_goes_ahead,
    joined,
    on_first,
    rank,
    together,
)
from prism_lite.rehearsal import rehearse_stages
from prism_lite.rewards.load import load_rewards
from prism_lite.run_results import (
    adds_seconds,
    evaluate_policy,
    write_exports,
    write_reports,
    write_skipped,
)
from prism_lite.runs.environment import check_same_rewards, write_environment
from prism_lite.runs.folder import RunFolder, open_run
from prism_lite.runs.go_back import go_back
from prism_lite.runs.inputs import base_inputs, check_inputs, data_inputs, write_inputs
from prism_lite.runs.peak_memory import start_peak
from prism_lite.runs.resume import check_folder, has_begun
from prism_lite.runs.trackers import check_trackers
from prism_lite.stages.align import run_align
from prism_lite.stages.best_of_n import run_best_of_n
from prism_lite.stages.context import Context
from prism_lite.stages.dpo import run_dpo
from prism_lite.stages.memory import context_with_less_memory, free_memory
from prism_lite.stages.preflight import (
    check_rewards,
    check_stages,
    warn_of_shared_rows,
)
from prism_lite.stages.read_prompts import read_prompts
from prism_lite.stages.rlvr import run_control, run_rlvr
from prism_lite.stages.sft import run_sft, run_teacher_sft
from prism_lite.stages.text_lengths import check_text_lengths
from prism_lite.stages.warmup import run_warmup
from prism_lite.types import EVALUATED_STAGES, STAGES, NotFiniteError, Stage

_ALIGN_METHODS: dict[str, Callable[[Context], None]] = {
    "adversarial": run_align,
    "dpo": run_dpo,
    "sft": run_teacher_sft,
    "best_of_n": run_best_of_n,
}
RUN_STAGE: dict[Stage, Callable[[Context], None]] = {
    "sft": run_sft,
    "warmup": run_warmup,
    "align": lambda context: _ALIGN_METHODS[context.config.align.method](context),
    "rlvr": run_rlvr,
    "control": run_control,
}


def run(
    config: RunConfig,
    out: str | Path,
    *,
    stages: Sequence[Stage] = STAGES,
    console: Console | None = None,
    command: str | None = None,
    from_checkpoint: str | None = None,
    accept_changed_inputs: bool = False,
    strict: bool = False,
    rehearsal: bool = True,
) -> dict[str, Any]:
    """Run the stages that are not finished, evaluate each policy, write results, plots and model card.

    Where torchrun or accelerate started several processes, all of them call this with the same arguments
    and share the work; the first one writes and prints.

    Args:
        config: from `load_recipe`.
        out: run folder; created, or resumed if it holds a run with the same settings.
        stages: a part of the pipeline; the stages before it must be finished in this folder. All
            stages: without the warm-up if alignment has no discriminator.
        command: the command line that started the run, for env.json and the card.
        from_checkpoint: STAGE:STEP, resume from it instead of the newest one (`go_back`).
        accept_changed_inputs: resume although files that the run reads have changed; recorded.
        strict: compare pictures and the base by content too.
        rehearsal: on a card, take one step of every stage with the largest rows before the first one.

    Returns:
        The content of results.json.

    Raises:
        ValueError: something that the user gave is wrong; nothing was half-written.
        Stopped: asked to stop; saved.
    """
    with signals.caught(), lasting_output(), joined():
        console = console or Console()
        return _run(
            config,
            Path(out),
            stages,
            console if rank() == 0 else Console(quiet=True),
            command,
            from_checkpoint,
            accept_changed_inputs=accept_changed_inputs,
            strict=strict,
            rehearsal=rehearsal,
        )


def _run(
    config: RunConfig,
    out: Path,
    stages: Sequence[Stage],
    console: Console,
    command: str | None,
    from_checkpoint: str | None,
    *,
    accept_changed_inputs: bool,
    strict: bool,
    rehearsal: bool,
) -> dict[str, Any]:
    if tuple(stages) == STAGES and not plays_game(config):
        stages = [stage for stage in stages if stage != "warmup"]
    if config.rlvr.control and "rlvr" in stages:
        # before alignment, so that a run ends with its own policy; after the warm-up, which finds out
        # whether SFT has learned the format
        num_before = sum(stage in ("sft", "warmup") for stage in stages)
        stages = [*stages[:num_before], "control", *stages[num_before:]]
    check_machine(config)
    check_trackers(config)
    on_first(lambda: check_folder(out, config))
    rewards = load_rewards(config)
    changed = check_same_rewards(out, config, rewards, accept=accept_changed_inputs)
    if config.data.task == "files":
        say(console, "reading and checking the data")
        if config.recipe == config.model.name == "tiny":
            say(
                console,
                "the tiny model knows only the words of the embedded task: see --recipe tiny-files",
            )
        make_cache_folder()
    stamps = cache_folder() / "decoded"
    task = first_goes_ahead(lambda: load_task(config, console=console, stamps=stamps))
    inputs = data_inputs(config, task, strict=strict)
    changed += check_inputs(out, inputs, config, accept=accept_changed_inputs)
    check_stages(config, out, stages, task)
    check_rewards(config, rewards, stages, task)
    warn_of_shared_rows(config, task, console)
    for reward in rewards:
        if reward.file is not None:
            text = f"reward {reward.name} (weight {reward.weight:g}): {reward.file}, checked"
            say(console, text)
    if config.sft.start_from is not None and _waits(out, "sft") and "sft" in stages:
        read_adapter(config.sft.start_from, config.lora)  # refused before the base is evaluated
    with _opened(out, config, console) as folder:
        if from_checkpoint is not None:
            on_first(lambda: go_back(folder, from_checkpoint))
        started_s = time.monotonic()
        base_path = first_goes_ahead(lambda: base_folder(config))
        base_s = time.monotonic() - started_s
        if config.model.name != "tiny":
            say(console, f"loading {config.model.name} (a hub id is downloaded the first time)")
        backbone = together(
            lambda: load_backbone(config.model, config.lora, base_path, seed=config.seed)
        )
        folder.device = backbone.device
        say(console, f"{backbone.precision.reason}; {backbone.loader}")
        commit = getattr(backbone.core.config, "_commit_hash", None)
        base = base_inputs(config, base_path, commit, strict=strict)
        changed += check_inputs(out, base, config, accept=accept_changed_inputs)
        on_first(lambda: write_inputs(out, inputs | base, changed, console))
        task = read_prompts(config, backbone, _rows_to_read(task, out, stages), console)
        check_stages(config, out, stages, task)  # `read_prompts` may have left out rows
        check_text_lengths(config, backbone, task, console, has_begun=has_begun(out))
        with signals.reacts("note"):
            context = Context(config, folder, backbone, task, rewards)
            if rehearsal and backbone.device.type == "cuda":
                context = rehearse_stages(context, stages)
            return _train(context, stages, base_s, command)


@contextmanager
def _opened(out: Path, config: RunConfig, console: Console) -> Iterator[RunFolder]:
    """Open the run folder: the first process writes it, the others read it."""
    with ExitStack() as stack:
        folder = on_first(lambda: stack.enter_context(open_run(out, config, console)))
        yield folder or RunFolder(out, config, console)


def _train(
    context: Context, stages: Sequence[Stage], base_s: float, command: str | None
) -> dict[str, Any]:
    """Run and evaluate the stages, and write what is exported from the run."""
    config, folder, backbone = context.config, context.run, context.backbone
    on_first(lambda: write_skipped(folder, context.task))
    on_first(
        lambda: write_environment(folder.path, config, backbone.core, context.rewards, command)
    )
    if not broadcast(folder.results()).get("stages", {}).get("base"):
        context = evaluate_policy(context, "base", base_s)
        write_reports(context)
    for stage in stages:
        folder.check_stop(f"before stage {stage}")
        if not broadcast(folder.is_done(stage)):
            start_peak(backbone.device)
            with adds_seconds(folder, stage):
                context = _run_stage(context, stage)
        results = broadcast(folder.results())
        if stage in EVALUATED_STAGES and stage not in results.get("stages", {}):
            context.load_policy(stage)
            context = evaluate_policy(context, stage, results.get("seconds", {}).get(stage))
            write_reports(context)
    on_first(lambda: write_exports(context))
    write_reports(context)
    return folder.results()


def _run_stage(context: Context, stage: Stage) -> Context:
    """Run a stage, and return the context that later ones use.

    Where a step is not finite, it is left out, and the stage resumes from the checkpoint before it; where
    memory is short, it resumes with less.
    """
    backbone = context.backbone
    start = {name: tensor.cpu() for name, tensor in backbone.adapter_state().items()}
    while True:
        try:
            RUN_STAGE[stage](context)
            return context
        except NotFiniteError as error:
            context.run.skip_step(stage, error)
        except (RuntimeError, MemoryError) as error:
            context = context_with_less_memory(context, error, f"stage {stage}")
        for parameter in backbone.policy_parameters():
            parameter.grad = None
        free_memory()
        backbone.load_adapter_state(start)


def _waits(out: Path, stage: str) -> bool:
    return not (out / "stages" / stage / "final").is_dir()


def _rows_to_read(task: TaskData, out: Path, stages: Sequence[Stage]) -> TaskData:
    """Return the task without the rows of stages that are finished or not asked for."""
    waiting = {stage for stage in stages if _waits(out, stage)}
    readers = {
        "sft": {"sft"},
        "warmup": {"warmup"},
        "align": {"warmup", "align"},
        "rlvr": {"rlvr", "control"},
    }
    unread = {name: () for name, needed_by in readers.items() if not needed_by & waiting}
    return dataclasses.replace(task, **unread)
