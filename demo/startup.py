"""Importing Gradio in half the time: it is most of what a person waits for.

While it is imported, Gradio 6 parses the source of each of its components to write type stubs beside it,
into the installed package. An editor may want them; a demo does not.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType

STUBS = "gradio.component_meta"


class _WithoutStubs(importlib.machinery.SourceFileLoader):
    """Loads the module that writes the stubs, and has it write none."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        if hasattr(module, "create_or_modify_pyi"):
            module.create_or_modify_pyi = lambda *_: None  # pyright: ignore[reportAttributeAccessIssue]


class _Finder:
    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != STUBS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.origin is not None:
            spec.loader = _WithoutStubs(name, spec.origin)
        return spec


def import_gradio() -> None:
    """Import Gradio without its stubs, its statistics and its look for a newer version."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    sys.meta_path.insert(0, _Finder)  # pyright: ignore[reportArgumentType]
    try:
        import gradio  # noqa: F401
    finally:
        sys.meta_path.remove(_Finder)  # pyright: ignore[reportArgumentType]
