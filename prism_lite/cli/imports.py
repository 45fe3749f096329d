"""Keep libraries from talking over the program: call it before torch is imported."""

from __future__ import annotations


def quiet_libraries() -> None:
    """Before torch is imported: our own progress and warnings are enough. Downloads keep their bars."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    # bitsandbytes suggests an optional package at import; NF4 on the CPU works without it
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    enable_progress_bars()  # the line above switches off those of the hub too
