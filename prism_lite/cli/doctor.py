"""`prism-lite doctor`: what this machine has and can run."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch", "transformers", "peft", "bitsandbytes", "triton", "unsloth", "flash_attn", "gradio",
)  # fmt: skip


def add_command(commands: Any) -> None:
    """Add `doctor` to the command line's subparsers."""
    command = commands.add_parser("doctor", help="what this machine can run")
    command.set_defaults(handler=_doctor, takes_settings=False)


def _doctor(_arguments: argparse.Namespace, _overrides: list[str]) -> int:
    print(describe())
    return 0


def describe() -> str:
    """Return Python, packages, device and memory, as lines of text for a bug report."""
    import torch

    from prism_lite.config import ModelConfig
    from prism_lite.files import cache_folder
    from prism_lite.models.device import card_of, choose_precision, warnings_of
    from prism_lite.models.load_unsloth import choose_backend
    from prism_lite.version import describe_version, installed_version, torchao_trouble

    model = ModelConfig()
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    spin = os.environ.get("GOMP_SPINCOUNT") or os.environ.get("OMP_WAIT_POLICY") or "default"
    lines = {
        "prism-lite": describe_version().removeprefix("prism-lite "),
        "system": "Linux and WSL2 are supported",
        "python": f"{platform.python_version()} on {platform.platform()}",
        **{name: installed_version(name) or "not installed" for name in _PACKAGES},
        "gpu": "none that torch can use: recipes for a GPU will be refused",
        "recipes": f"{', '.join(recipes_for_this_machine())} (prism-lite run --recipe NAME)",
        "precision": choose_precision(model, card_of(model)).reason,
        "model": choose_backend(model, card_of(model))[1],
        "cpu": f"{os.cpu_count()} cores, {gib:.1f} GiB memory",
        "disk": f"{_free_gib(cache_folder())} in the cache, {_free_gib(Path.cwd())} in {Path.cwd()}",
        "cache": str(cache_folder()),
        "threads": f"{torch.get_num_threads()}, spin {spin}",
    }
    if trouble := torchao_trouble():
        lines["torchao"] = trouble
    if torch.cuda.is_available():
        lines["kernels"] = (
            "; ".join(warnings_of(card_of(model))) or "Triton's, a tiny one was launched"
        )
        gpus = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
        lines["gpu"] = "; ".join(
            f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, sm{gpu.major}{gpu.minor}"
            for gpu in gpus
        )
    return "\n".join(f"{name:13} {text}" for name, text in lines.items())


def _free_gib(folder: Path) -> str:
    """Return the free disk space of a folder that may not exist yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return f"{shutil.disk_usage(existing).free / 2**30:.1f} GiB free"


def recipes_for_this_machine() -> list[str]:
    """Return the shipped recipes that would not be refused on this machine."""
    from prism_lite.models.device import card_of, check_machine, choose_precision
    from prism_lite.recipe import load_recipe, recipe_names

    names = []
    for name in recipe_names():
        config = load_recipe(name)
        try:
            check_machine(config)
            choose_precision(config.model, card_of(config.model))
        except ValueError:
            continue
        names.append(name)
    return names
