"""Adapters from elsewhere: a PEFT folder or hub id as the policy that a run starts from."""

from __future__ import annotations

from peft import LoraConfig as PeftLoraConfig
from peft import PeftConfig
from peft.utils import load_peft_weights
from torch import Tensor

from prism_lite.config import LoraConfig


def read_adapter(path: str, lora: LoraConfig) -> dict[str, Tensor]:
    """Weights of a LoRA adapter, in PEFT's names.

    Args:
        path: folder or hub id.
        lora: the run's settings, which the adapter must have been trained with.

    Raises:
        ValueError: there is no adapter there, or it is not one that these settings describe.
    """
    try:
        found = PeftConfig.from_pretrained(path)
        weights = load_peft_weights(path, device="cpu")
    except (OSError, ValueError) as error:  # PEFT's word for a missing adapter_config.json
        raise ValueError(
            f"sft.start_from = {path!r}: no adapter there ({str(error).splitlines()[0]}). Give a PEFT "
            "folder (a run's policy/) or a hub id; a whole checkpoint goes into model.name."
        ) from error
    if not isinstance(found, PeftLoraConfig):
        raise ValueError(f"sft.start_from = {path!r} is a {found.peft_type}; expected LoRA.")
    if (found.r, found.lora_alpha) != (lora.rank, lora.alpha):
        raise ValueError(
            f"sft.start_from = {path!r} has rank {found.r} and alpha {found.lora_alpha}: set "
            f"lora.rank={found.r} lora.alpha={found.lora_alpha}."
        )
    if found.use_rslora or found.use_dora or found.rank_pattern or found.alpha_pattern:
        raise ValueError(f"sft.start_from = {path!r} is no plain LoRA (rslora, DoRA or a pattern).")
    return weights
