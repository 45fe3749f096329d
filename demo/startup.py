"""Import Gradio in half the time.

When it is imported, Gradio 6 parses the source of each of its components and writes type stubs next to
it. A component without a source file gets none.
"""

from __future__ import annotations

import inspect
import os


def import_gradio() -> None:
    """Import Gradio without type stubs, analytics and the check for a newer version."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

    def no_file(_: object) -> str:
        raise FileNotFoundError

    getfile, inspect.getfile = inspect.getfile, no_file
    try:
        import gradio  # noqa: F401
    finally:
        inspect.getfile = getfile
