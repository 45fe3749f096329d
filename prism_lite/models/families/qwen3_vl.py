"""Qwen3-VL: everything that depends on the architecture, in one file.

Names and tokens, M-RoPE positions, the vision tower with its DeepStack levels, and how a decoder layer is
read. Packing, sampling, prompts, vision and the loaders call it; another family would be a file with the
same names.

Shape letters: P prompt tokens, F tokens of a forward, N visual tokens of one picture (in `run_decoder`: of
all pictures), D hidden size, d head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

MODEL_TYPE = "qwen3_vl"
END_TOKEN = "<|im_end|>"
PICTURE_TOKEN = "<|image_pad|>"
# Placeholders of pictures: a completion that contains one could not be run again.
PICTURE_TOKENS = (PICTURE_TOKEN, "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
LANGUAGE_LINEARS = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
# transformers 5 matches these anchored: a plain "visual" would not skip the tower.
NOT_QUANTISED = [r"lm_head", r".*visual.*"]


class Core(Protocol):
    """The members that are used of a loaded `Qwen3VLForConditionalGeneration`, from either loader."""

    config: Any
    model: Any
    generate: Any

    @property
    def device(self) -> torch.device: ...
    def __call__(self, **inputs: Any) -> Any: ...
    def train(self, mode: bool = True) -> Any: ...
    def eval(self) -> Any: ...
    def requires_grad_(self, requires_grad: bool = True) -> Any: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...
    def buffers(self) -> Iterator[Tensor]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def get_input_embeddings(self) -> Any: ...
    def get_output_embeddings(self) -> Any: ...
    def gradient_checkpointing_enable(self, settings: dict[str, Any]) -> None: ...


def decoder(core: Core) -> Any:
    """Return the text model: embeddings, layers, last norm."""
    return core.model.language_model


def decoder_layers(core: Core) -> Sequence[Any]:
    """Return the decoder layers, first to last."""
    return decoder(core).layers


def layer_linears(layer: Any) -> tuple[tuple[Any, ...], ...]:
    """Return a layer's linear modules by their input: qkv, out, gate and up, down."""
    attention, mlp = layer.self_attn, layer.mlp
    return (
        (attention.q_proj, attention.k_proj, attention.v_proj),
        (attention.o_proj,),
        (mlp.gate_proj, mlp.up_proj),
        (mlp.down_proj,),
    )


def layer_norms(layer: Any) -> tuple[Any, Any]:
    """Return the norms before attention and before the MLP."""
    return layer.input_layernorm, layer.post_attention_layernorm


def query_key_norms(layer: Any) -> Tensor:
    """Return the norm weights of every query head, then of every key head, [heads, d]."""
    attention = layer.self_attn
    return torch.cat(
        [
            attention.q_norm.weight.expand(attention.config.num_attention_heads, -1),
            attention.k_norm.weight.expand(attention.config.num_key_value_heads, -1),
        ]
    )


def run_decoder(
    core: Core,
    embeds_FD: Tensor,
    position_ids_3F: Tensor,
    *,
    is_picture_F: Tensor,
    deepstack: list[Tensor],
    cache: Any,
    **attention: Any,
) -> Tensor:
    """Run the decoder over one row of embeddings.

    Args:
        deepstack: one [N, D] per level, added to the visual tokens after the first layers; empty
            without pictures.
        cache: a transformers cache to fill, or None.
        attention: passed to every layer's attention function.

    Returns:
        hidden_FD: after the last norm.
    """
    output = decoder(core)(
        inputs_embeds=embeds_FD[None],
        position_ids=position_ids_3F[:, None].to(core.device),
        visual_pos_masks=is_picture_F[None].to(core.device) if deepstack else None,
        deepstack_visual_embeds=deepstack or None,
        past_key_values=cache,
        use_cache=cache is not None,
        **attention,
    )
    return output.last_hidden_state[0]


def prompt_positions(
    core: Core, token_ids_P: Tensor, is_picture_P: Tensor, grids: Sequence[tuple[int, int, int]]
) -> Tensor:
    """Return the M-RoPE positions of a prompt, int64 [3, P]: time, height, width.

    Args:
        grids: patches of each picture along time, height and width.
    """
    position_ids, _ = core.model.get_rope_index(
        token_ids_P[None],
        is_picture_P[None].int(),
        image_grid_thw=torch.tensor(grids) if grids else None,
    )
    return position_ids[:, 0]


def picture_grid(
    size: tuple[int, int], image_processor: Any, min_pixels: int, max_pixels: int
) -> tuple[int, int, int]:
    """Return a picture's patches along time, height and width, after the processor's resize.

    Args:
        size: width and height in pixels.
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    width, height = size
    patch = image_processor.patch_size
    new_height, new_width = smart_resize(
        height,
        width,
        factor=patch * image_processor.merge_size,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
    )
    return 1, new_height // patch, new_width // patch


def vision_tower(core: Core) -> Any:
    """Return the vision tower."""
    return core.model.visual


def movable_tower_parts(core: Core) -> list[nn.Module]:
    """Return the tower without its small patch embedding, whose device must remain the model's."""
    tower = vision_tower(core)
    return [tower.blocks, tower.merger, tower.deepstack_merger_list, tower.pos_embed]


def encode_pixels(
    core: Core, pixels: Tensor, grids: Tensor
) -> list[tuple[Tensor, tuple[Tensor, ...]]]:
    """Run the vision tower; differentiable in its weights.

    Returns:
        Per picture: merged tokens [N, D], which replace the placeholders' embeddings, and one [N, D] per
        DeepStack level.
    """
    output = core.model.get_image_features(pixels.to(core.device), grids.to(core.device))
    merged, deepstack = output.pooler_output, output.deepstack_features
    sizes = [len(merged_ND) for merged_ND in merged]
    # transformers 5.23 splits each DeepStack level like the merged features, 5.17 does not.
    levels = [level.split(sizes) if isinstance(level, Tensor) else level for level in deepstack]
    return [
        (merged_ND, tuple(of_picture))
        for merged_ND, *of_picture in zip(merged, *levels, strict=True)
    ]


def use_linear_patch_embedding(core: Core) -> None:
    """Replace the Conv3d patch embedding, whose kernel equals its stride, by the equal matmul.

    The convolution is 10 to 50,000 times slower on some torch and card pairs.
    """
    embedding = vision_tower(core).patch_embed
    weight = embedding.proj.weight

    def forward(hidden_states: Tensor) -> Tensor:
        patches = hidden_states.view(-1, weight[0].numel()).to(weight.dtype)
        return nn.functional.linear(patches, weight.flatten(1), embedding.proj.bias)

    embedding.forward = forward
