"""`prism-lite teach`: completions of a better model for rows without them. The work is done in teach/."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_lite import signals

if TYPE_CHECKING:
    from prism_lite.teach.settings import EndpointSettings, TeachSettings

_OF_ENDPOINT = ("parallel", "rate", "timeout", "retries", "key_variable", "request", "model")
_OF_LOCAL = ("batch", "card")
_SMALLEST = {
    "num": 1, "tries": 1, "max_tokens": 1, "max_pixels": 1024, "temperature": 0.0, "parallel": 1,
    "rate": 0.0, "timeout": 0.1, "retries": 0, "batch": 1, "card": 1.0,
}  # fmt: skip


def add_command(commands: Any) -> None:
    """Add `teach` to the command line's subparsers."""
    command = commands.add_parser(
        "teach",
        help="let a better model write caption, think and answer for your rows",
        description="Asks a model about every row of a data file, with its pictures, for a completion in "
        "three parts (caption, think, answer), and writes rows with teacher text, which alignment reads. "
        "The model is at an OpenAI-compatible endpoint, or on this machine. The same command continues an "
        "interrupted file; no finished row is asked again.",
        epilog="The key is read from $PRISM_TEACHER_API_KEY, else $OPENAI_API_KEY, and written nowhere. "
        "Example: prism-lite teach mine.jsonl --base-url http://localhost:8000/v1 --model "
        "Qwen/Qwen3-VL-32B-Instruct --keep-right --out taught.jsonl",
    )
    option = command.add_argument
    option("data", metavar="DATA", help="file, folder or hub id, in any format that run reads")
    option(
        "--out", required=True, metavar="FILE", help="a .jsonl file; its journal is kept beside it"
    )
    who = command.add_mutually_exclusive_group(required=True)
    who.add_argument("--base-url", metavar="URL", help="endpoint, up to and including /v1")
    who.add_argument(
        "--local", metavar="ID", help="a Qwen3-VL on this machine in NF4: hub id, folder or tiny"
    )
    option("--model", metavar="NAME", help="name that the endpoint knows")
    option("--num", type=int, default=1, metavar="N", help="completions per row; default: 1")
    option(
        "--tries",
        type=int,
        default=3,
        metavar="N",
        help="replies per completion: a malformed one is asked again with the reason; default: 3",
    )
    option(
        "--keep-right",
        action="store_true",
        help="keep only completions whose answer the verifier accepts",
    )
    option(
        "--field",
        choices=("teacher", "demonstration", "both"),
        default="teacher",
        help="where they are written; both: the first one also becomes the demonstration, for SFT",
    )
    option("--instruction", metavar="TEXT|@FILE", help="system turn; default: asks for three parts")
    option("--temperature", type=float, metavar="T", help="default: the endpoint's (local: 0.7)")
    option("--max-tokens", type=int, default=1024, metavar="N", help="longest reply; default: 1024")
    option(
        "--max-pixels",
        type=int,
        default=1024 * 1024,
        metavar="N",
        help="larger pictures are scaled down; default: 1048576",
    )
    option("--columns", metavar="MAP", help="'{prompt: question, images: image, answer: answer}'")
    option("--image-root", metavar="DIR", help="relative picture paths start here")
    option(
        "--price",
        nargs=2,
        type=float,
        metavar=("PROMPTS", "REPLIES"),
        help="of a million tokens each: the cost is estimated and counted",
    )
    option(
        "--dry-run", action="store_true", help="estimate requests, tokens and cost; send nothing"
    )
    _add_source_options(command)
    command.set_defaults(handler=_teach, takes_settings=False)


def _add_source_options(command: argparse.ArgumentParser) -> None:
    """Add what only an endpoint, and what only a local model, uses."""
    at_endpoint = command.add_argument_group("with --base-url")
    option = at_endpoint.add_argument
    option("--parallel", type=int, metavar="N", help="requests at the same time; default: 8")
    option("--rate", type=float, metavar="N", help="most requests a minute; default: no limit")
    option("--timeout", type=float, metavar="SECONDS", help="of one reply; default: 120")
    option("--retries", type=int, metavar="N", help="after a failed request; default: 6")
    option("--key-variable", metavar="NAME", help="environment variable that holds the key")
    option(
        "--request",
        metavar="JSON",
        help="further fields of a request; null removes one, as in "
        '\'{"max_tokens": null, "max_completion_tokens": 4000}\'',
    )
    local = command.add_argument_group("with --local")
    local.add_argument("--batch", type=int, metavar="N", help="rows at the same time; default: 4")
    local.add_argument("--card", type=float, metavar="GIB", help="with --dry-run: plan its memory")


def _teach(arguments: argparse.Namespace, _overrides: list[str]) -> int:
    """Ask about every row, or estimate what that takes.

    Returns:
        0 where every row has ended; 1 where the endpoint failed some, 2 where some cannot be asked.

    Raises:
        ValueError: an argument, a file or the key is of no use.
    """
    _check(arguments)

    import yaml
    from rich.console import Console

    from prism_lite.cli.imports import prepare_imports
    from prism_lite.teach import run
    from prism_lite.teach.local_settings import local_config, with_own_instruction

    columns = yaml.safe_load(arguments.columns) if arguments.columns else None
    if columns is not None and not isinstance(columns, dict):
        raise ValueError(f"--columns {arguments.columns!r}: expected '{{ours: theirs, ...}}'.")
    opened = run.open_rows(arguments.data, columns, arguments.image_root)
    out = Path(arguments.out)
    if out.resolve() in {path.resolve() for path in opened.source.files}:
        raise ValueError(f"--out {out} is the data itself: give another file.")
    settings = _settings(arguments)
    if arguments.base_url:
        teacher = _endpoint(arguments)
    else:
        settings = with_own_instruction(settings)
        teacher = local_config(settings, batch_rows=arguments.batch or 4)
        prepare_imports(teacher.model)
    job = run.Job(opened, out, settings, teacher, tuple(arguments.price or ()) or None)
    if arguments.dry_run:
        return run.dry_run(job, arguments.card, Console(soft_wrap=True))
    try:
        with signals.reacts("note"):
            return run.teach(job, Console(soft_wrap=True))
    except KeyboardInterrupt:
        # Python would wait for the threads, and they for replies. What has come is stored.
        print(f"interrupted; resume with: {arguments.command_text}", flush=True)
        os._exit(3)


def _check(arguments: argparse.Namespace) -> None:
    """Check what the arguments alone show to be wrong.

    Raises:
        ValueError: a number is too small, an option has no effect, or one is missing.
    """
    for name, smallest in _SMALLEST.items():
        value = getattr(arguments, name)
        if value is not None and not value >= smallest:
            raise ValueError(f"{_flag(name)} {value:g}: expected {smallest:g} or more.")
    kind, others = ("--base-url", _OF_LOCAL) if arguments.base_url else ("--local", _OF_ENDPOINT)
    for name in others:
        if getattr(arguments, name) is not None:
            raise ValueError(f"{_flag(name)} has no effect with {kind}: leave it out.")
    if arguments.base_url and arguments.model is None:
        raise ValueError("--base-url needs --model NAME, as the endpoint calls it.")
    if arguments.card is not None and not arguments.dry_run:
        raise ValueError("--card plans the memory of --local: give --dry-run with it.")
    if Path(arguments.out).suffix != ".jsonl":
        raise ValueError(f"--out {arguments.out}: teacher text is written as .jsonl.")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _settings(arguments: argparse.Namespace) -> TeachSettings:
    from prism_lite.teach.settings import INSTRUCTION, TeachSettings

    instruction = arguments.instruction or INSTRUCTION
    if instruction.startswith("@"):
        path = Path(instruction[1:])
        if not path.is_file():
            raise ValueError(f"--instruction {instruction}: {path.absolute()} does not exist.")
        instruction = path.read_text(encoding="utf-8").strip()
    return TeachSettings(
        model=arguments.model or arguments.local,
        num=arguments.num,
        tries=arguments.tries,
        keep_right=arguments.keep_right,
        max_tokens=arguments.max_tokens,
        max_pixels=arguments.max_pixels,
        temperature=arguments.temperature,
        instruction=instruction,
        field=arguments.field,
    )


def _endpoint(arguments: argparse.Namespace) -> EndpointSettings:
    from prism_lite.endpoint import check_address
    from prism_lite.teach.settings import EndpointSettings

    options: dict[str, Any] = {
        "parallel": arguments.parallel,
        "per_minute": arguments.rate,
        "timeout_s": arguments.timeout,
        "retries": arguments.retries,
        "key_variables": (arguments.key_variable,) if arguments.key_variable else None,
    }
    if arguments.request is not None:
        try:
            options["request"] = json.loads(arguments.request)
        except ValueError as error:
            raise ValueError(f"--request {arguments.request!r} is not JSON ({error}).") from error
        if not isinstance(options["request"], dict):
            raise ValueError(f"--request {arguments.request!r}: expected a JSON object of fields.")
    options = {name: value for name, value in options.items() if value is not None}
    return EndpointSettings(check_address(arguments.base_url, "--base-url"), **options)
