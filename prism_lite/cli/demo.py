"""`prism-lite demo`: open the Gradio app of the repository."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import prism_lite


def add_command(commands: Any) -> None:
    """Add `demo` to the command line's subparsers."""
    command = commands.add_parser("demo", help="look at runs, train and ask models in a browser")
    command.add_argument(
        "--run", metavar="DIR", help="default: the newest of runs/, or a recorded one"
    )
    command.add_argument("--share", action="store_true", help="public link with a password")
    command.add_argument(
        "--port", type=int, metavar="N", help="default: the first free one from 7860"
    )
    command.add_argument(
        "--host", action="append", default=[], metavar="NAME",
        help="a further name that the page is opened under, as that of a proxy; others get 403",
    )  # fmt: skip
    command.set_defaults(handler=_demo, takes_settings=False)


def _demo(arguments: argparse.Namespace, _overrides: list[str]) -> int:
    if arguments.port is not None and not 1 <= arguments.port <= 65535:
        raise ValueError(f"--port {arguments.port}: expected 1 to 65535, as 7860.")
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
        from demo.runs.folder import open_home
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "psutil"):
            raise
        raise ValueError(
            f"the demo needs {error.name}: pip install 'prism-lite[demo]', or run `make demo`."
        ) from error
    home = open_home(arguments.run, is_shared=arguments.share)
    launch(home, port=arguments.port, hosts=arguments.host)
    return 0
