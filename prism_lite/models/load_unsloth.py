"""Choosing the loader, transformers + bitsandbytes or Unsloth, and loading with Unsloth.

Both give the same `Qwen3VLForConditionalGeneration` with the same linears in NF4; adapters, roles,
checkpointing and sampling are ours with either. Unsloth adds its kernels for NF4, norms, rotation and MLP.
They run on a card only: "auto" chooses it where `python -m tests.gpu_check` has passed with it, on the same
card and with the same versions. Its compiler, checkpoint offload, block compilation and generation stay
off: they do not support our hooks, packed masks and several adapters. This file must not import
transformers.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from prism_lite.config import ModelConfig
from prism_lite.files import cache_folder, make_cache_folder, read_json, write_json
from prism_lite.models.device import Card, Precision, card_of
from prism_lite.version import installed_version

Backend = Literal["transformers", "unsloth"]
_CHECK_PASSED = "unsloth_check_passed.json"  # in the cache folder
# Read by Unsloth when it is imported.
ENVIRONMENT = {
    "UNSLOTH_COMPILE_DISABLE": "1",  # its compiler replaces modules that our hooks are on
    "TORCHDYNAMO_DISABLE": "1",  # functions that it decorates with torch.compile
    "UNSLOTH_DISABLE_STATISTICS": "1",  # no download counter on the hub
    "UNSLOTH_BLOCK_COMPILE": "0",  # a compiled layer does not see the discriminator's hooks
}


def choose_backend(model: ModelConfig, card: Card | None) -> tuple[Backend, str]:
    """Return the loader, and a sentence that says why, or why not the one that was requested."""
    requested = model.backend == "unsloth"
    if model.backend == "transformers":
        return "transformers", "loaded by transformers + bitsandbytes (model.backend)"
    if card is None:
        missing = "it needs an NVIDIA GPU and there is none"
    elif "unsloth" not in sys.modules and "transformers" in sys.modules:
        missing = "transformers was imported before it; put `import unsloth` first in your program"
    elif "unsloth" not in sys.modules and importlib.util.find_spec("unsloth") is None:
        missing = "it is not installed (pip install 'prism-lite[gpu]')"
    elif not requested and not _has_passed_check(card):
        missing = (
            "not yet checked on this card: `python -m tests.gpu_check` does it, and model.backend=unsloth "
            "uses it unchecked"
        )
    else:
        why = "model.backend" if requested else f"checked on this {card.name}"
        return "unsloth", f"loaded by Unsloth ({why})"
    instead = "loaded by transformers + bitsandbytes"
    if requested:
        return (
            "transformers",
            f"model.backend = unsloth is not possible: {missing}; {instead} instead",
        )
    return "transformers", f"{instead} (Unsloth: {missing})"


def import_first(model: ModelConfig) -> None:
    """Import Unsloth if it will load the model; call it before transformers is imported."""
    if choose_backend(model, card_of(model))[0] == "unsloth":
        import_unsloth()


def import_unsloth() -> Any:
    """Import Unsloth with its settings; before transformers, or its patches come too late."""
    if "unsloth" not in sys.modules:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(_folder_of_generated_code()))
    import unsloth  # pyright: ignore[reportMissingImports]

    return unsloth


def _folder_of_generated_code() -> Path:
    """Create the folder that Unsloth writes Python code to and imports it from: only the user's own.

    Raises:
        ValueError: it cannot be created.
    """
    folder = make_cache_folder() / "unsloth_compiled"
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)  # it may be older than this rule
    return folder


def note_check_passed(card: Card) -> Path:
    """Remember that the checks on this card have passed with the installed Unsloth."""
    path = make_cache_folder() / _CHECK_PASSED
    write_json(path, _checked_machine(card))
    return path


def _has_passed_check(card: Card) -> bool:
    path = cache_folder() / _CHECK_PASSED
    return path.is_file() and read_json(path) == _checked_machine(card)


def _checked_machine(card: Card) -> dict[str, str | None]:
    """Return what a passed check holds for: the card and the versions."""
    names = ("unsloth", "unsloth_zoo", "torch", "transformers", "peft", "bitsandbytes", "triton")
    return {"card": card.name, "sm": card.sm} | {name: installed_version(name) for name in names}


def load_with_unsloth(path: str, model: ModelConfig, precision: Precision, *, seed: int) -> Any:
    """Load the model through `FastVisionModel`, without adapters.

    Only arguments that the installed release takes by name are passed: it hands others on to transformers'
    loader, which fails.
    """
    loader = import_unsloth().FastVisionModel.from_pretrained
    settings = {
        "model_name": path,
        "revision": model.revision,
        "max_seq_length": max(model.max_pack_tokens, model.max_prompt_tokens),
        "dtype": precision.compute_dtype,
        "load_in_4bit": model.quantization == "nf4",
        "load_in_8bit": False,
        "load_in_16bit": model.quantization == "none",
        "full_finetuning": False,
        "device_map": {"": precision.device},
        "use_gradient_checkpointing": False,  # ours is installed later
        "use_exact_model_name": True,  # the named base, not a requantised copy
        "fast_inference": False,
        "random_state": seed,
        "trust_remote_code": False,
    }
    core, _processor = loader(**known_to(loader, settings))
    return core


def known_to(function: Callable[..., Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a function takes by name.

    Raises:
        RuntimeError: it does not take one that the right model depends on.
    """
    names = inspect.signature(function).parameters
    needed = ["model_name", "dtype", "load_in_4bit"]
    needed += ["revision"] if settings.get("revision") else []
    missing = [name for name in needed if name not in names]
    if missing:
        raise RuntimeError(
            f"this release of Unsloth does not take {', '.join(missing)}: set "
            "model.backend=transformers, or install a release that `make test-unsloth` passes with."
        )
    return {name: value for name, value in settings.items() if name in names}
