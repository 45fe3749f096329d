"""The command line: parse the arguments and call one handler. Modules in `cli` import torch lazily.

Exit codes: 0 done, 1 an error of ours or of the machine, 2 what the user gave is wrong (one sentence, no
traceback), 3 stopped on request (the same command resumes).
"""

from __future__ import annotations

import argparse
import linecache
import os
import shlex
import sys
from collections.abc import Sequence

from prism_lite.cli import data, demo, doctor, plan, settings, study, train, trained
from prism_lite.types import Stopped


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code.
    """
    command_line = sys.argv[1:] if argv is None else list(argv)
    arguments, rest = _parser().parse_known_args(command_line)
    try:
        if rest and not arguments.takes_settings:
            raise ValueError(f"{arguments.command} takes no settings, got {rest[0]!r}.")
        return arguments.handler(arguments, _overrides(rest))
    except (Stopped, KeyboardInterrupt) as stop:
        resume = shlex.join(["prism-lite", *command_line])
        print(f"{str(stop) or 'interrupted'}; resume with: {resume}")
        return 3
    except BrokenPipeError:  # the reader has closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, RuntimeError) as error:
        if not _is_raised_by_us(error):
            raise
        print(f"prism-lite: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prism-lite",
        description="PRISM post-training of vision-language models on one GPU, or a CPU.",
        epilog=train.EPILOG,
    )
    parser.set_defaults(takes_settings=True)
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for module in (train, settings, trained, data, plan, study, doctor, demo):
        module.add_command(commands)
    return parser


def _overrides(rest: Sequence[str]) -> list[str]:
    """Convert `--align.group_size 8` and `--align.group_size=8` to `align.group_size=8`.

    Raises:
        ValueError: an argument has none of these forms.
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


def _is_raised_by_us(error: Exception) -> bool:
    """Check that a `raise` of this project made the error, so that its message is for the user.

    An error from inside another library, or from a builtin (`zip(strict=True)`, `int("x")`), is a
    defect of ours and keeps its traceback.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    module = trace.tb_frame.f_globals.get("__name__", "")
    line = linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
    is_raise = not line or line.lstrip().startswith("raise")
    return is_raise and module.startswith(("prism_lite.", "demo.", "__main__"))


if __name__ == "__main__":
    sys.exit(main())
