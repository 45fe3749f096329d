"""`prism-lite demo`: open the Gradio app of the repository."""

from __future__ import annotations

import argparse
import sys

import prism_lite


def _demo(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from pathlib import Path

    if overrides:
        raise ValueError(
            f"demo takes no settings, got {overrides[0]!r}: give them to `prism-lite run`."
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
        from demo.runs.folder import open_home
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "psutil"):
            raise
        raise ValueError(
            f"the demo needs {error.name}: pip install 'prism-lite[demo]', or run `make demo`."
        ) from error
    launch(open_home(arguments.run, is_shared=arguments.share), port=arguments.port)
    return 0
