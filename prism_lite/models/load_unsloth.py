"""Choosing the loader, transformers + bitsandbytes or Unsloth, and loading with Unsloth.

Both give the same `Qwen3VLForConditionalGeneration` with the same linears in NF4; adapters, roles,
checkpointing and sampling are ours with either. Unsloth adds its kernels for NF4, norms, rotation and MLP.
Its checkpoint offload, block compilation and generation stay off: they do not support our hooks, packed
masks and several adapters. This file must not import transformers.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from prism_lite.config import ModelConfig
from prism_lite.models.device import Card, Precision, card_of

Backend = Literal["transformers", "unsloth"]
# Read by Unsloth when it is imported.
_ENVIRONMENT = {
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
    else:
        why = "model.backend" if requested else f"installed, and there is a {card.name}"
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
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # Unsloth writes generated code to a folder: not into the user's working directory.
        compiled = Path(tempfile.gettempdir()) / f"prism_lite_unsloth_{os.getuid()}"
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(compiled))
    import unsloth  # pyright: ignore[reportMissingImports]

    return unsloth


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
