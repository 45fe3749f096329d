"""What must be done before torch and transformers are imported."""

from __future__ import annotations

import logging
import os
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prism_lite.config import ModelConfig


def prepare_imports(model: ModelConfig) -> None:
    """Import Unsloth if it will load the model, as it must be imported first; silence the libraries.

    Raises:
        ValueError: PEFT cannot load weights that are not quantised beside an old torchao.
    """
    from prism_lite.models.load_unsloth import import_first
    from prism_lite.version import torchao_trouble

    if model.quantization == "none" and (trouble := torchao_trouble()):
        raise ValueError(trouble)
    import_first(model)
    quiet_libraries()


def quiet_libraries() -> None:
    """Switch off the warnings and progress bars of libraries, except those of downloads."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    # bitsandbytes recommends an optional package when imported; NF4 on the CPU works without it
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    enable_progress_bars()  # the line above also disables those of the hub
