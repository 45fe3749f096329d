"""The command line: parse, call one function. Heavy imports wait until they are needed.

Exit codes: 0 done, 1 our fault or the machine's, 2 what the person gave is wrong (one sentence, no
traceback), 3 stopped on request (the same command resumes).
"""

from __future__ import annotations

import argparse
import linecache
import sys
from collections.abc import Sequence

import prism_lite  # sets the thread settings before torch is imported
from prism_lite import model_commands, plan_command, study_command
from prism_lite.quiet import quiet_libraries

STAGE_HELP = {
    "sft": "stage 1 alone: imitation of the demonstrations",
    "warmup": "stage 2 alone: the discriminator learns teacher against SFT samples",
    "align": "stage 3 alone: the adversarial game",
    "rlvr": "stage 4 alone: reinforcement with verifiable rewards",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    arguments, overrides = _parser().parse_known_args(given)
    arguments.given = given
    try:
        return arguments.handler(arguments, _overrides(overrides))
    except (ValueError, RuntimeError) as error:
        if not _is_for_the_person(error):
            raise
        print(f"prism-lite: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _is_for_the_person(error: Exception) -> bool:
    """Whether prism_lite raised it: its ValueErrors are sentences about what a person gave, its
    RuntimeErrors about the machine.

    One from inside another library, or from a builtin (`zip(strict=True)`, `int("x")`), is a fault of
    ours and keeps its traceback.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    module = trace.tb_frame.f_globals.get("__name__", "")
    line = linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
    is_raised_here = not line or line.lstrip().startswith("raise")
    return is_raised_here and module.startswith(("prism_lite.", "demo.", "__main__"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prism-lite",
        description="PRISM post-training of vision-language models on one GPU, or a CPU.",
        epilog="Any setting: --align.group_size 8 or align.group_size=8. All of them: "
        "prism-lite run --dry-run.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="the whole pipeline; run it again to resume")
    _common(run)
    run.set_defaults(handler=_run, stages=None)
    for stage, text in STAGE_HELP.items():
        command = commands.add_parser(stage, help=text)
        _common(command)
        command.set_defaults(handler=_run, stages=(stage,))
    model_commands.add_commands(commands)
    data = commands.add_parser("data", help="data check PATH: every defect, before training")
    check = data.add_subparsers(required=True, metavar="check").add_parser("check")
    check.add_argument("path", help="file, folder or hub id")
    check.add_argument("--fix", metavar="OUT", help="write the clean rows here")
    check.add_argument("--eval", metavar="FILE", help="also look for overlap with this file")
    check.add_argument("--stage", choices=("sft", "warmup", "align", "rlvr", "eval"))
    check.add_argument(
        "--columns", metavar="MAP", help="'{prompt: question, images: image, answer: answer}'"
    )
    check.add_argument("--image_root", metavar="DIR", help="relative picture paths start here")
    check.set_defaults(handler=_data_check)
    plan_command.add_command(commands)
    study_command.add_command(commands)
    doctor = commands.add_parser("doctor", help="what this machine can run")
    doctor.set_defaults(handler=_doctor)
    demo = commands.add_parser("demo", help="look at runs, train and ask models in a browser")
    demo.add_argument(
        "--run", metavar="DIR", help="default: the newest of runs/, or a recorded one"
    )
    demo.add_argument("--share", action="store_true", help="public link with a password")
    demo.add_argument("--port", type=int, metavar="N", help="default: the first free one from 7860")
    demo.set_defaults(handler=_demo)
    return parser


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--recipe", default="tiny", metavar="NAME|FILE", help="default: tiny")
    command.add_argument("--out", metavar="DIR", help="run folder; default: runs/RECIPE")
    command.add_argument("--seed", type=int, help="default: the recipe's")
    command.add_argument(
        "--backend", choices=("auto", "transformers", "unsloth"), help="the loader"
    )
    command.add_argument("--dry-run", action="store_true", help="print the settings and stop")


def _overrides(rest: Sequence[str]) -> list[str]:
    """`--align.group_size 8`, `--align.group_size=8` and `align.group_size=8`, all as the last.

    Raises:
        ValueError: an argument that is none of these.
    """
    overrides, waiting = [], list(rest)
    while waiting:
        item = waiting.pop(0)
        if "=" in item:
            overrides.append(item.removeprefix("--"))
        elif item.startswith("--") and waiting and not waiting[0].startswith("--"):
            overrides.append(f"{item.removeprefix('--')}={waiting.pop(0)}")
        else:
            raise ValueError(
                f"cannot understand {item!r}: settings are given as key=value or --key value."
            )
    return overrides


def _run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    import yaml

    from prism_lite.recipe import load_recipe, to_dict

    if arguments.seed is not None:
        overrides = [*overrides, f"seed={arguments.seed}"]
    if arguments.backend is not None:
        overrides = [*overrides, f"model.backend={arguments.backend}"]
    config = load_recipe(arguments.recipe, overrides)
    if arguments.dry_run:
        print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")
        return 0

    from prism_lite.models.backend import import_first

    import_first(config.model)
    quiet_libraries()
    from rich.console import Console

    from prism_lite import pipeline, report
    from prism_lite.run_folder import Stopped

    console = Console()
    out = arguments.out or f"runs/{config.recipe}"
    stages = arguments.stages or tuple(pipeline.STAGES)
    try:
        results = pipeline.run(config, out, stages=stages, console=console)
    except (Stopped, KeyboardInterrupt) as stop:
        console.print(report.resume_line(stop, arguments.given), soft_wrap=True)
        return 3
    if results.get("stages"):
        console.print(report.results_table(results))
    console.print(f"run folder: {out} (plots/, README.md, policy/, metrics.jsonl)")
    return 0


def _data_check(arguments: argparse.Namespace, overrides: list[str]) -> int:
    import yaml

    from prism_lite.data.doctor import CheckRules, main_check

    if overrides:
        raise ValueError(f"data check takes no settings, got {overrides[0]!r}.")
    columns = yaml.safe_load(arguments.columns) if arguments.columns else None
    if columns is not None and not isinstance(columns, dict):
        raise ValueError(f"--columns {arguments.columns!r}: expected '{{ours: theirs, ...}}'.")
    return main_check(
        arguments.path,
        columns=columns,
        fix=arguments.fix,
        eval_path=arguments.eval,
        rules=CheckRules(stage=arguments.stage),
        image_root=arguments.image_root,
    )


def _doctor(_arguments: argparse.Namespace, _overrides: list[str]) -> int:
    from prism_lite import machine

    print(machine.describe())
    return 0


def _demo(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from pathlib import Path

    if overrides:
        raise ValueError(
            f"demo takes no settings, got {overrides[0]!r}: they are those of the run."
        )
    repository = Path(prism_lite.__file__).parent.parent
    if not (repository / "demo" / "app.py").is_file():
        raise ValueError(
            "the demo is part of the repository, not of the installed package: clone the repository and "
            "run `make demo` there."
        )
    sys.path.insert(0, str(repository))
    try:
        from demo.startup import import_gradio

        import_gradio()
        from demo.app import launch
        from demo.folder import open_home
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "psutil"):
            raise
        raise ValueError(
            f"the demo needs {error.name}: pip install 'prism-lite[demo]', or run `make demo`."
        ) from error
    launch(open_home(arguments.run, is_shared=arguments.share), port=arguments.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
