"""The commands on a finished run: eval, export, chat."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_lite.cli.imports import prepare_imports
from prism_lite.types import EVALUATED_STAGES
from prism_lite.version import torchao_trouble

if TYPE_CHECKING:
    from rich.console import Console

    from prism_lite.types import Group


def add_command(commands: Any) -> None:
    """Add the three commands to the command line's subparsers."""
    evaluate = commands.add_parser(
        "eval",
        help="metrics of a finished stage, on any data file",
        description="Answers held-out questions with the policy of a finished stage, checks the answers "
        "and prints accuracy with intervals. Writes nothing into the run folder.",
    )
    _add_run_and_stage(evaluate)
    option = evaluate.add_argument
    option("--data", metavar="FILE", help="rows to evaluate on (default: held-out)")
    option("--columns", metavar="MAP", help="'{prompt: question, answer: answer}'")
    option("--model", metavar="DIR|ID", help="evaluate this checkpoint instead of a stage")
    option("--json", metavar="FILE", help="write the figures here")
    option("--show", type=int, default=0, metavar="N", help="print N completions")
    evaluate.set_defaults(handler=_eval, takes_settings=False)

    export = commands.add_parser(
        "export",
        help="merged weights, or the discriminator as a reward",
        description="--merge writes the policy of a finished stage as an ordinary Qwen3-VL folder in 16 "
        "bit and compares it with the trained policy before it is kept. The merge needs the memory of the "
        "16-bit base on the CPU: 4 GiB for 2B, 8.3 for 4B, 16.3 for 8B. --discriminator writes the "
        "discriminator as a reward function.",
    )
    _add_run_and_stage(export, stages=(*EVALUATED_STAGES, "warmup"))
    what = export.add_mutually_exclusive_group(required=True)
    what.add_argument("--merge", action="store_true", help="the policy, merged into full weights")
    what.add_argument("--discriminator", action="store_true", help="a reward function for TRL")
    option = export.add_argument
    option("--out", required=True, metavar="DIR", help="a new folder")
    option(
        "--weights",
        choices=("original", "dequantised"),
        help="merge into the base as published (default), or into the values of its NF4 weights, with "
        "which the adapter was trained",
    )
    option(
        "--bound",
        type=float,
        metavar="NATS",
        help="refuse a merge whose log-probs differ more than this from the trained policy's, a mean over "
        "tokens; default: 0.1",
    )
    option(
        "--gguf",
        choices=("f16", "bf16", "q8_0"),
        help="print the llama.cpp commands that convert the merge to this type",
    )
    option(
        "--push",
        metavar="REPO",
        help="upload to this hub repository (user/name), private; log in with `hf auth login`",
    )
    option("--public", action="store_true", help="with --push: a new repository is public")
    export.set_defaults(handler=_export, takes_settings=False)

    chat = commands.add_parser(
        "chat",
        help="ask a trained policy about a picture",
        description="Prints the answer as it is generated.",
        epilog='Example: prism-lite chat --run runs/geo triangle.png "How large is angle A?"',
    )
    _add_run_and_stage(chat)
    option = chat.add_argument
    option("pictures", nargs="*", metavar="PICTURE", help="picture files")
    option("question", help="the question, in quotes")
    option(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 (default) takes the most likely token each time, 1 samples as in training",
    )
    option("--max-tokens", type=int, metavar="N", help="longest answer; default: the run's limit")
    chat.set_defaults(handler=_chat, takes_settings=False)


def _add_run_and_stage(
    command: argparse.ArgumentParser, stages: tuple[str, ...] = EVALUATED_STAGES
) -> None:
    command.add_argument(
        "--run", required=True, metavar="DIR", help="a run folder, like runs/t4-2b"
    )
    command.add_argument("--stage", choices=stages, help="default: the last finished one")


def _prepare(run_folder: str) -> None:
    from prism_lite.recipe import read_run

    prepare_imports(read_run(run_folder).model)


def _eval(arguments: argparse.Namespace, _overrides: list[str]) -> int:
    import yaml

    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        raise ValueError(
            f"--json {arguments.json}: {Path(arguments.json).absolute().parent} does not exist; create "
            "it, or name another file."
        )
    _prepare(arguments.run)
    from rich.console import Console

    from prism_lite.files import write_json

    columns = yaml.safe_load(arguments.columns) if arguments.columns else None
    figures = evaluate_run(
        arguments.run,
        arguments.stage,
        model=arguments.model,
        data=arguments.data,
        columns=columns,
        num_shown=arguments.show,
        console=Console(),
    )
    if arguments.json:
        write_json(Path(arguments.json), figures)
    return 0


def _export(arguments: argparse.Namespace, _overrides: list[str]) -> int:
    if arguments.discriminator:
        for name in ("gguf", "bound", "weights"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name} is about merged weights: give it with --merge.")
    if arguments.public and not arguments.push:
        raise ValueError("--public is about the repository of --push: give both.")
    if arguments.merge and (trouble := torchao_trouble()):
        raise ValueError(trouble)
    _prepare(arguments.run)
    from prism_lite.deploy import export, hub

    if arguments.discriminator:
        export.export_discriminator(arguments.run, arguments.out, stage=arguments.stage)
    else:
        export.export_merged(
            arguments.run,
            arguments.out,
            stage=arguments.stage,
            weights=arguments.weights or "original",
            bound=export.DISTANCE_BOUND if arguments.bound is None else arguments.bound,
        )
        print(f"exported: {arguments.out}")
    if arguments.gguf:
        print("To convert it, clone https://github.com/ggml-org/llama.cpp and run:")
        print("\n".join(hub.gguf_commands(arguments.out, arguments.gguf)))
    if arguments.push:
        address = hub.push_folder(arguments.out, arguments.push, private=not arguments.public)
        print(f"pushed: {address}")
    return 0


def _chat(arguments: argparse.Namespace, _overrides: list[str]) -> int:
    if arguments.temperature < 0:
        raise ValueError(f"--temperature {arguments.temperature:g}: expected 0 or more.")
    if arguments.max_tokens is not None and arguments.max_tokens < 1:
        raise ValueError(f"--max-tokens {arguments.max_tokens}: expected 1 or more.")
    if Path(arguments.question).is_file():
        raise ValueError(
            f"{arguments.question} is a file, and the last argument is the question: put it, in quotes, "
            "after the pictures."
        )
    _prepare(arguments.run)
    from prism_lite.deploy.chat import chat
    from prism_lite.parts import Malformed, parse

    answer = chat(
        arguments.run,
        arguments.pictures,
        arguments.question,
        stage=arguments.stage,
        temperature=arguments.temperature,
        max_tokens=arguments.max_tokens,
    )
    parsed = parse(answer)
    if isinstance(parsed, Malformed):
        print(f"malformed: {parsed.reason}", file=sys.stderr)
    return 0


def evaluate_run(
    run_folder: str | Path,
    stage: str | None = None,
    *,
    model: str | None = None,
    data: str | None = None,
    columns: Mapping[str, str] | None = None,
    num_shown: int = 0,
    console: Console,
) -> dict[str, Any]:
    """Evaluate a stage of a run, or another checkpoint, and print its figures; write nothing.

    Args:
        stage: default: the last finished one.
        model: a merged export or hub id to evaluate under the run's settings instead of a stage.
        data: rows to evaluate on instead of the run's held-out ones: any known format.
        columns: our field name -> the file's column, for formats that are not known.
        num_shown: number of greedy completions to print with their questions.

    Returns:
        The figures of an `Evaluation`, and n, the number of prompts.

    Raises:
        ValueError: the run, stage, checkpoint or file does not exist.
    """
    from prism_lite.console import say
    from prism_lite.deploy.load import heldout_task, last_stage, load_checkpoint, load_stage
    from prism_lite.recipe import read_run
    from prism_lite.runs.report import stage_line
    from prism_lite.sampling.rollouts import sample_groups
    from prism_lite.stages.evaluate import evaluate, evaluated_samples
    from prism_lite.stages.read_prompts import read_prompts

    config = read_run(run_folder)
    task = heldout_task(config, data, columns, console=console)
    if not task.heldout:
        raise ValueError(f"--run {run_folder} has no held-out rows: give --data FILE.")
    if model is None:
        stage = stage or last_stage(run_folder)
        backbone = load_stage(run_folder, config, stage)
    else:
        backbone = load_checkpoint(config, model)
    say(console, f"{backbone.precision.reason}; {backbone.loader}")
    task = read_prompts(config, backbone, task, console)
    if not task.heldout:
        raise ValueError(f"no row is left to evaluate: {task.skipped[0].message}")
    if data is not None:  # the user named the rows: evaluate all of them
        config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, num_prompts=0))
    figures = evaluate(backbone, task, config).figures
    figures["n"] = len(evaluated_samples(task, config))
    line = stage_line(stage or "model", figures)
    say(console, f"{line}, {figures['n']} prompts")
    groups = sample_groups(
        backbone,
        task.heldout[:num_shown],
        group_size=1,
        sampling=dataclasses.replace(config.sampling, temperature=0.0),
        seed=("show",),
    )
    for group in groups:
        say(console, _greedy_completion(group))
    return figures


def _greedy_completion(group: Group) -> str:
    """Return a completion with its row, the gold answer, and whether it says that."""
    from prism_lite.parts import Malformed
    from prism_lite.rewards.group_rewards import group_verdicts

    sample, rollout = group.sample, group.rollouts[0]
    (value,) = group_verdicts(group)
    verdict = "undecided" if value is None else "right" if value else "wrong"
    if not rollout.is_well_formed:
        faults = [rollout.parts.reason] if isinstance(rollout.parts, Malformed) else []
        faults += ["it has the greatest length"] if rollout.finish == "length" else []
        verdict = f"malformed: {', '.join(faults)}"
    question = " ".join(sample.question.replace("<image>", " ").split())
    files = [str(p.source) for p in sample.pictures if isinstance(p.source, Path)]
    return "\n".join(
        ("", question, *files, f"gold: {sample.answer} ({verdict})", rollout.text.strip())
    )
