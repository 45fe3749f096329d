"""The commands that use a finished run: eval, export, chat. Heavy imports wait until they are needed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from prism_lite.quiet import quiet_libraries

STAGES = ("base", "sft", "align", "rlvr")


def add_commands(commands: Any) -> None:
    """Add the three commands to the parser's subcommands."""
    evaluate = commands.add_parser("eval", help="figures of a finished stage, on any data file")
    _run_and_stage(evaluate)
    evaluate.add_argument("--data", metavar="FILE", help="rows to evaluate on (default: held-out)")
    evaluate.add_argument("--columns", metavar="MAP", help="'{prompt: question, answer: answer}'")
    evaluate.add_argument("--model", metavar="DIR|ID", help="judge this checkpoint, not a stage")
    evaluate.add_argument("--json", metavar="FILE", help="write the figures here")
    evaluate.add_argument("--show", type=int, default=0, metavar="N", help="print N completions")
    evaluate.set_defaults(handler=_eval)

    export = commands.add_parser("export", help="merged weights, or the discriminator as a reward")
    _run_and_stage(export, stages=(*STAGES, "warmup"))
    what = export.add_mutually_exclusive_group(required=True)
    what.add_argument("--merge", action="store_true", help="the policy, merged into full weights")
    what.add_argument("--discriminator", action="store_true", help="a reward function for TRL")
    export.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    export.add_argument(
        "--weights",
        choices=("original", "dequantised"),
        default="original",
        help="merge into the base as published, or into what its NF4 weights stand for",
    )
    export.add_argument("--bound", type=float, metavar="NATS", help="refuse when further than this")
    export.add_argument(
        "--gguf", metavar="TYPE", help="f16, bf16 or q8_0, by llama.cpp's converter"
    )
    export.add_argument("--push", metavar="REPO", help="upload to this hub repository")
    export.add_argument("--public", action="store_true", help="a repository that --push makes")
    export.set_defaults(handler=_export)

    chat = commands.add_parser("chat", help="ask a trained policy about a picture")
    _run_and_stage(chat)
    chat.add_argument("pictures", nargs="*", metavar="PICTURE", help="picture files")
    chat.add_argument("question", help="the question, in quotes")
    chat.add_argument("--temperature", type=float, default=0.0, help="default: 0, most likely")
    chat.add_argument("--max-tokens", type=int, metavar="N", help="default: the run's")
    chat.set_defaults(handler=_chat)


def _run_and_stage(command: argparse.ArgumentParser, stages: tuple[str, ...] = STAGES) -> None:
    command.add_argument("--run", required=True, metavar="DIR", help="a run folder")
    command.add_argument("--stage", choices=stages, help="default: the last finished one")


def _eval(arguments: argparse.Namespace, overrides: list[str]) -> int:
    import yaml

    _refuse_settings("eval", overrides)
    _prepare(arguments.run)
    from rich.console import Console

    from prism_lite.finished import evaluate_run

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
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def _export(arguments: argparse.Namespace, overrides: list[str]) -> int:
    _refuse_settings("export", overrides)
    if arguments.gguf and not arguments.merge:
        raise ValueError("--gguf converts merged weights: give it with --merge.")
    _prepare(arguments.run)
    from prism_lite import export, publish

    if arguments.discriminator:
        export.export_discriminator(arguments.run, arguments.out, stage=arguments.stage)
    else:
        export.export_merged(
            arguments.run,
            arguments.out,
            stage=arguments.stage,
            weights=arguments.weights,
            bound=export.DISTANCE_BOUND if arguments.bound is None else arguments.bound,
        )
        print(f"exported: {arguments.out}")
    if arguments.gguf:
        by_hand = publish.write_gguf(arguments.out, arguments.gguf)
        if by_hand:
            print("llama.cpp is not here. Put its folder into LLAMA_CPP and export again, or run:")
            print("\n".join(by_hand))
    if arguments.push:
        address = publish.push_folder(arguments.out, arguments.push, private=not arguments.public)
        print(f"pushed: {address}")
    return 0


def _chat(arguments: argparse.Namespace, overrides: list[str]) -> int:
    _refuse_settings("chat", overrides)
    _prepare(arguments.run)
    from prism_lite.chat import chat

    chat(
        arguments.run,
        arguments.pictures,
        arguments.question,
        stage=arguments.stage,
        temperature=arguments.temperature,
        max_tokens=arguments.max_tokens,
    )
    return 0


def _refuse_settings(command: str, overrides: list[str]) -> None:
    if overrides:
        raise ValueError(f"{command} takes no settings, got {overrides[0]!r}: they are the run's.")


def _prepare(run: str) -> None:
    """What has to come before transformers is imported."""
    from prism_lite.models.backend import import_first
    from prism_lite.recipe import read_run

    import_first(read_run(run).model)
    quiet_libraries()
