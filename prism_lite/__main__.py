"""The command line: parse, call one function. Heavy imports wait until they are needed.

Exit codes: 0 done, 1 our fault or the machine's, 2 what the person gave is wrong (one sentence, no
traceback), 3 stopped on request (the same command resumes).
"""

from __future__ import annotations

import argparse
import linecache
import sys
from collections.abc import Sequence

from prism_lite.cli import data, plan, settings, study, trained
from prism_lite.cli.demo import _demo
from prism_lite.cli.doctor import _doctor
from prism_lite.cli.train import EPILOG, STAGE_HELP, _common, _overrides, _run


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
        epilog=EPILOG,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run", help="the whole pipeline; run it again to resume", epilog=EPILOG
    )
    _common(run)
    run.set_defaults(handler=_run, stages=None)
    for stage, text in STAGE_HELP.items():
        command = commands.add_parser(stage, help=text, epilog=EPILOG)
        _common(command)
        command.set_defaults(handler=_run, stages=(stage,))
    settings.add_command(commands)
    trained.add_commands(commands)
    data.add_command(commands)
    plan.add_command(commands)
    study.add_command(commands)
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


if __name__ == "__main__":
    sys.exit(main())
