"""prism_lite: PRISM post-training of vision-language models on one consumer GPU or a CPU.

from prism_lite import load_recipe, run
results = run(load_recipe("tiny", {"align.group_size": 8}), "runs/tiny")
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# OpenMP threads spin for a moment, then sleep: as fast as spinning on an idle machine, several times
# faster beside other work. Has to be set before torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

# Phases of a step ask a card for blocks of other sizes: torch can then grow a block of memory instead of
# keeping blocks of every size. Read by torch when it is imported; on a CPU without effect.
if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"

if TYPE_CHECKING:
    from prism_lite.pipeline import run
    from prism_lite.recipe import load_recipe

__all__ = ["load_recipe", "run"]


def __getattr__(name: str) -> object:
    """Import on first use: `prism-lite --help` must not wait for torch."""
    if name == "load_recipe":
        from prism_lite.recipe import load_recipe

        return load_recipe
    if name == "run":
        from prism_lite.pipeline import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
