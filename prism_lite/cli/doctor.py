"""What this machine has and can run: `prism-lite doctor`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import sys
from importlib.metadata import version

PACKAGES = (
    "torch", "transformers", "peft", "bitsandbytes", "triton", "unsloth", "flash_attn", "gradio",
)  # fmt: skip


def describe() -> str:
    """Python, packages, device and memory, as lines of text for a bug report."""
    import torch

    from prism_lite.config import ModelConfig
    from prism_lite.models.device import card_of, choose_precision
    from prism_lite.models.load_unsloth import choose_backend

    lines = [f"python        {sys.version.split()[0]} on {platform.platform()}"]
    for name in PACKAGES:
        found = importlib.util.find_spec(name) is not None
        lines.append(f"{name:13} {version(name) if found else 'not installed'}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            lines.append(
                f"gpu {index}         {properties.name}, {properties.total_memory / 2**30:.1f} GiB, "
                f"sm{properties.major}{properties.minor}"
            )
    else:
        lines.append("gpu           none that torch can use: recipes for a card will refuse")
    model = ModelConfig()
    lines.append(
        f"recipes       {', '.join(recipes_for_this_machine())} (prism-lite run --recipe NAME)"
    )
    lines.append(f"precision     {choose_precision(model, card_of(model)).reason}")
    lines.append(f"model         {choose_backend(model, card_of(model))[1]}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines.append(f"cpu           {os.cpu_count()} cores, {memory:.1f} GiB memory")
    lines.append(f"threads       {torch.get_num_threads()}, spin {_spin()}")
    return "\n".join(lines)


def recipes_for_this_machine() -> list[str]:
    """Shipped recipes that would not be refused here."""
    from prism_lite.models.device import card_of, check_machine, choose_precision
    from prism_lite.recipe import load_recipe, recipe_names

    found = []
    for name in recipe_names():
        config = load_recipe(name)
        try:
            check_machine(config)
            choose_precision(config.model, card_of(config.model))
        except ValueError:
            continue
        found.append(name)
    return found


def _spin() -> str:
    return os.environ.get("GOMP_SPINCOUNT") or os.environ.get("OMP_WAIT_POLICY") or "default"


def _doctor(_arguments: argparse.Namespace, _overrides: list[str]) -> int:
    print(describe())
    return 0
