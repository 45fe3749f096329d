"""Adapters of other programs: a PEFT folder or hub id as the policy that a run starts from."""

from __future__ import annotations

from peft import LoraConfig as PeftLoraConfig
from peft import PeftConfig
from peft.utils import load_peft_weights
from torch import Tensor

from prism_lite.config import LoraConfig


def read_adapter(path: str, lora: LoraConfig) -> dict[str, Tensor]:
    """Read the weights of a LoRA adapter, in PEFT's names.

    Args:
        path: folder or hub id.
        lora: the run's settings, which the adapter must have been trained with.

    Raises:
        ValueError: the adapter is missing, or it is not one that these settings describe.
    """
    try:
        config = PeftConfig.from_pretrained(path)
        weights = load_peft_weights(path, device="cpu")
    except (OSError, ValueError) as error:  # ValueError: PEFT's for a missing adapter_config.json
        raise ValueError(
            f"sft.start_from = {path!r}: no adapter there ({str(error).splitlines()[0]}). Give a PEFT "
            "folder (a run's policy/) or a hub id; a full checkpoint is given as model.name."
        ) from error
    if not isinstance(config, PeftLoraConfig):
        raise ValueError(f"sft.start_from = {path!r} is a {config.peft_type}; expected LoRA.")
    if (config.r, config.lora_alpha) != (lora.rank, lora.alpha):
        raise ValueError(
            f"sft.start_from = {path!r} has rank {config.r} and alpha {config.lora_alpha}: set "
            f"lora.rank={config.r} lora.alpha={config.lora_alpha}."
        )
    if config.use_rslora or config.use_dora or config.rank_pattern or config.alpha_pattern:
        raise ValueError(
            f"sft.start_from = {path!r} is not a plain LoRA (rslora, DoRA or a pattern)."
        )
    return weights
