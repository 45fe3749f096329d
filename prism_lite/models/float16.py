"""float16 without overflow: the residual stream in float32, everything between two additions in float16.

Qwen models write values into the residual stream that exceed float16 (largest 65,504) but not bfloat16.
Each branch reads the stream through a norm, whose output is small: the norm computes in float32 and returns
float16; attention and MLP, with their matrix products and the KV cache, stay in float16; their output is
added to the float32 stream.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prism_lite.models.families import qwen3_vl as family
from prism_lite.models.families.qwen3_vl import Core


def keep_residual_in_float32(core: Core, dtype: torch.dtype) -> None:
    """Install the casts on a Qwen3-VL's decoder.

    Args:
        dtype: of everything between the norms: torch.float16.
    """
    decoder = family.decoder(core)
    for layer in decoder.layers:
        layer.register_forward_pre_hook(_stream_to_float32, with_kwargs=True)
        for norm in family.layer_norms(layer):
            norm.register_forward_hook(_output_to(dtype))
    decoder.norm.register_forward_hook(_output_to(dtype))
    # The rotation takes the stream's type, but queries and keys need that of the values.
    decoder.rotary_emb.register_forward_hook(_output_to(dtype))


def _stream_to_float32(_layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        return (args[0].float(), *args[1:]), kwargs
    return args, kwargs | {"hidden_states": kwargs["hidden_states"].float()}


def _output_to(dtype: torch.dtype) -> Any:
    def cast(_module: Any, _args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return output.to(dtype)
        return tuple(part.to(dtype) for part in output)

    return cast
