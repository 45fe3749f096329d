"""The command that repeats a run with other settings: what an alarm or an error tells the user to type."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from prism_lite.config import RunConfig
from prism_lite.files import read_json
from prism_lite.recipe import with_overrides
from prism_lite.runs.folder import RunFolder


def retry_command(
    run: RunFolder, changes: Mapping[str, str], *, resumes: bool = False
) -> str | None:
    """Return the run's command with other settings and a new run folder, quoted for the shell.

    Args:
        changes: by setting the new value, or "*2" for twice the present one.
        resumes: with the same run folder, as these settings may change in it.

    Returns:
        None for a run from Python, and where the run would be refused with these settings.
    """
    file = run.path / "env.json"
    command = read_json(file).get("command") if file.is_file() else None
    if not command or not changes:
        return None
    values = {key: _new_value(run.config, key, text) for key, text in changes.items()}
    try:
        with_overrides(run.config, values)
    except ValueError:
        return None
    program, stages, *words = shlex.split(command)
    settings = [f"{key}={value}" for key, value in values.items()]
    if resumes:
        return shlex.join([program, stages, *_without(words, set(values)), *settings])
    number = 2
    while (folder := run.path.with_name(f"{run.path.name}-{number}")).exists():
        number += 1
    # (all stages: those before the one that ran are missing in the new folder)
    kept = _without(words, {"out", *values})
    return shlex.join([program, "run", *kept, "--out", str(folder), *settings])


def repeat_with(run: RunFolder, changes: Mapping[str, str]) -> str:
    """Return the end of an error's sentence: the command of `retry_command`, or a new --out in words."""
    command = retry_command(run, changes)
    return (
        f" in another run folder: {command}" if command else f" with another --out than {run.path}."
    )


def _new_value(config: RunConfig, key: str, text: str) -> Any:
    if not text.startswith("*"):
        return text
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    product = value * float(text.removeprefix("*"))
    return max(1, round(product)) if isinstance(value, int) else float(f"{product:.3g}")


def _without(words: list[str], names: set[str]) -> list[str]:
    """Return the words of a command line without these settings or options, in any of their forms."""
    kept, waiting = [], list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, _ = word.partition("=")
        is_option = name.startswith("--")
        if name.removeprefix("--") not in names or not (equals or is_option):
            kept.append(word)
        elif not equals and waiting:
            waiting.pop(0)
    return kept
