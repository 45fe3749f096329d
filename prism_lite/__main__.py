"""The command line: parse the arguments and call one handler. Modules in `cli` import torch lazily.

Exit codes: 0 done, 1 an error of ours or a lack of memory, 2 the user has to change something: an argument,
a file, a full disk (one sentence, no traceback), 3 stopped on request (the same command resumes).
"""

from __future__ import annotations

import argparse
import errno
import linecache
import os
import shlex
import sys
from collections.abc import Sequence

from prism_lite import signals

# What the user can put right, with what to do. Other errors of the system are defects of ours.
_NO_SPACE = "free some space, then give the same command again"
_NO_ACCESS = "name a folder that can be written (PRISM_LITE_CACHE names that of the cache)"
_MACHINE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _NO_SPACE),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR), _NO_ACCESS),
    errno.EIO: "check the disk, then give the same command again",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code.
    """
    command_line = sys.argv[1:] if argv is None else list(argv)
    command_text = shlex.join(["prism-lite", *command_line])
    resuming = shlex.join(["prism-lite", *_without_once(command_line)])
    with signals.caught(resuming), signals.reacts("exit"):
        return _run(command_line, command_text, resuming)


def _run(command_line: list[str], command_text: str, resuming: str) -> int:
    from prism_lite.types import Stopped

    try:
        arguments, rest = _parser().parse_known_args(command_line)
        _check_system(sys.platform)
        if rest and not arguments.takes_settings:
            raise ValueError(f"{arguments.command} takes no settings, got {rest[0]!r}.")
        arguments.command_text = command_text
        with signals.reacts("raise"):
            return arguments.handler(arguments, _overrides(rest))
    except (Stopped, KeyboardInterrupt) as stop:
        with signals.reacts("note"):
            print(f"{str(stop) or 'interrupted'}; resume with: {resuming}", flush=True)
        return 3
    except BrokenPipeError:  # the reader has closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _MACHINE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"prism-lite: {where}{error.strerror}; {_MACHINE[error.errno]}.", file=sys.stderr)
        return 2
    except (ValueError, RuntimeError) as error:
        if not _is_raised_by_us(error):
            raise
        print(f"prism-lite: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _without_once(command_line: Sequence[str]) -> list[str]:
    """Return the arguments that resume a run: without --from-checkpoint and --accept-changed-inputs."""
    kept, waiting = [], list(command_line)
    while waiting:
        item = waiting.pop(0)
        if item == "--from-checkpoint":
            del waiting[:1]
        elif item != "--accept-changed-inputs" and not item.startswith("--from-checkpoint="):
            kept.append(item)
    return kept


def _check_system(platform: str) -> None:
    """Check that the system is one that the program was made for.

    Raises:
        ValueError: it is not Linux (or WSL2, which is Linux).
    """
    if platform != "linux":
        name = {"win32": "Windows", "darwin": "macOS"}.get(platform, platform)
        instead = "use WSL2" if platform == "win32" else "use a Linux machine, or Colab"
        raise ValueError(f"prism_lite runs on Linux and WSL2, not on {name}: {instead}.")


def _parser() -> argparse.ArgumentParser:
    from prism_lite.cli import (
        data,
        demo,
        doctor,
        figures,
        plan,
        settings,
        study,
        teach,
        train,
        trained,
    )

    parser = argparse.ArgumentParser(
        prog="prism-lite",
        description="PRISM post-training of vision-language models on one GPU, or a CPU.",
        epilog=train.EPILOG,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.set_defaults(takes_settings=True)
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    modules = (train, settings, trained, figures, data, teach, plan, study, doctor, demo)
    for module in modules:
        module.add_command(commands)
    return parser


class _Version(argparse.Action):
    """`--version`: the package's version is read only when it is asked for."""

    def __call__(
        self, parser: argparse.ArgumentParser, *_arguments: object, **_more: object
    ) -> None:
        from prism_lite.version import describe_version

        print(describe_version())
        parser.exit()


def _overrides(rest: Sequence[str]) -> list[str]:
    """Convert `--align.group_size 8` and `--align.group_size=8` to `align.group_size=8`.

    Raises:
        ValueError: an argument has none of these forms.
    """
    from prism_lite.foreign_settings import foreign_setting

    overrides, waiting = [], list(rest)
    while waiting:
        item = waiting.pop(0)
        if "=" in item:
            overrides.append(item.removeprefix("--"))
        elif item.startswith("--") and waiting and not waiting[0].startswith("--"):
            overrides.append(f"{item.removeprefix('--')}={waiting.pop(0)}")
        elif item.startswith("-") and (change := foreign_setting(item.lstrip("-"))):
            raise ValueError(f"{item} {change}.")
        elif item.endswith((".yaml", ".yml")):
            raise ValueError(f"{item}: a recipe is given as --recipe {shlex.quote(item)}.")
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
