"""One frozen Qwen3-VL, loaded once in NF4, and the roles it plays.

policy: backbone + LoRA `policy`. reference: backbone + the adapter the stage started from, or none.
discriminator: backbone + the frozen trunk adapter (METHOD.md section 2), experts attached by
`discriminator/model.py`. Only `with backbone.role(...)` changes the active role. At most one adapter is
active at a time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from cachetools import LRUCache
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

import triton_kernels as tk
from prism_lite.config import LoraConfig, ModelConfig
from prism_lite.files import system_error
from prism_lite.models.device import (
    Precision,
    card_of,
    choose_precision,
    use_tensor_cores,
    warnings_of,
)
from prism_lite.models.families import qwen3_vl as family
from prism_lite.models.families.qwen3_vl import Core
from prism_lite.models.float16 import keep_residual_in_float32
from prism_lite.models.fused import fuse_lora, fuse_norms
from prism_lite.models.load_transformers import keep_cpu_weights_unpacked, load_with_transformers
from prism_lite.models.load_unsloth import choose_backend, load_with_unsloth
from prism_lite.models.packing import Pack, forward_pack
from prism_lite.models.placement import enable_checkpointing, keep_embeddings_on_cpu
from prism_lite.models.processor import load_processor
from prism_lite.models.prompts import Prompt, encode_prompt
from prism_lite.models.tree_attention import AttentionKind, choose_attention
from prism_lite.models.vision import VisionCache
from prism_lite.types import Sample, Turn

Role = Literal["policy", "reference", "discriminator"]
POLICY, REFERENCE, TRUNK = "policy", "reference", "trunk"
_MAX_CACHED_PROMPTS = 8192  # about 30 KiB each at 1,000 tokens


class Backbone:
    """The loaded model with its processor, adapters and picture features.

    Attributes:
        core: the `Qwen3VLForConditionalGeneration`; adapters are injected into it.
        peft: the PEFT wrapper that owns the adapters.
        processor: tokenizer and picture processor.
        precision: number types, and whether losses are scaled.
        loader: a sentence on which library loaded it and why, and what the card lacks.
        end_id: the token that ends a completion, also the discriminator's sentinel.
        suppressed_ids: tokens that sampling never draws.
    """

    def __init__(
        self,
        core: Core,
        processor: Any,
        model: ModelConfig,
        lora: LoraConfig,
        precision: Precision,
        loader: str,
    ) -> None:
        core.requires_grad_(False)
        core.eval()
        core.config.use_cache = False
        self.config = model
        self.precision = precision
        self.loader = loader
        self.core = core
        self.attention: AttentionKind = choose_attention(model.attention, core.device)
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.peft: PeftModel = get_peft_model(
            cast(PreTrainedModel, core), _peft_config(lora), adapter_name=POLICY
        )
        if precision.compute_dtype != torch.float32:
            fuse_lora(core)
        self._lora = lora
        self.end_id: int = self.tokenizer.convert_tokens_to_ids(family.END_TOKEN)
        self.pad_id: int = self.tokenizer.pad_token_id
        # Picture tokens, padding, and rows of the head without a token.
        unused = range(len(self.tokenizer), core.config.text_config.vocab_size)
        pictures = self.tokenizer.convert_tokens_to_ids(list(family.PICTURE_TOKENS))
        self.suppressed_ids: list[int] = sorted({*pictures, self.pad_id, *unused})
        self.vision = VisionCache(
            core,
            processor.image_processor,
            max_pictures=model.max_cached_pictures,
            max_bytes=int(model.picture_cache_gib * 2**30),
            on_cpu=model.vision_on_cpu,
        )
        self._prompts: LRUCache[tuple[str, tuple[Turn, ...]], Prompt] = LRUCache(
            _MAX_CACHED_PROMPTS
        )
        if model.gradient_checkpointing:
            enable_checkpointing(core, offload=model.offload_checkpoints)

    @property
    def device(self) -> torch.device:
        return self.core.device

    @contextmanager
    def role(self, role: Role) -> Iterator[None]:
        """Activate one role; the policy is active again afterwards.

        A loss must be propagated inside the role that produced it: gradient checkpointing runs the
        forward again in the backward.
        """
        adapter = {"policy": POLICY, "reference": REFERENCE, "discriminator": TRUNK}[role]
        try:
            if adapter in self.peft.peft_config:
                self._activate(adapter)
                yield
            else:
                with self.peft.disable_adapter():
                    yield
        finally:
            self._activate(POLICY)

    def _activate(self, adapter: str) -> None:
        tuner: Any = self.peft.base_model
        tuner.set_adapter(adapter, inference_mode=adapter != POLICY)
        assert tuner.active_adapters == [adapter]

    def policy_parameters(self) -> list[nn.Parameter]:
        """Return the LoRA weights of the policy, float32, in a fixed order."""
        named = sorted(self.core.named_parameters())
        return [p for name, p in named if f".{POLICY}." in name]

    def adapter_state(self, adapter: str = POLICY) -> dict[str, Tensor]:
        """Copy an adapter's weights, in PEFT's names."""
        state = get_peft_model_state_dict(self.peft, adapter_name=adapter)
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    def load_adapter_state(self, state: Mapping[str, Tensor], adapter: str = POLICY) -> None:
        """Overwrite an adapter (created if missing) with weights in PEFT's names.

        Raises:
            ValueError: the weights are not those of an adapter of this shape.
        """
        if adapter not in self.peft.peft_config:
            self.peft.add_adapter(adapter, _peft_config(self._lora))
        expected = get_peft_model_state_dict(self.peft, adapter_name=adapter)
        if {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in state.items()}:
            raise ValueError(
                f"the adapter has {len(state)} tensors that do not fit the {len(expected)} of this "
                "backbone: use the model and the lora settings it was trained with."
            )
        set_peft_model_state_dict(self.peft, dict(state), adapter_name=adapter)
        self._activate(POLICY)

    def drop_adapter(self, adapter: str) -> None:
        """Delete an adapter other than the policy, if it exists."""
        if adapter in self.peft.peft_config:
            self.peft.delete_adapter(adapter)
            self._activate(POLICY)

    def freeze_copy(self, adapter: str) -> None:
        """Copy the policy's current weights to a frozen adapter (the trunk, or the reference)."""
        self.load_adapter_state(self.adapter_state(POLICY), adapter)

    def save_policy(self, folder: str) -> None:
        """Write the policy as a plain PEFT folder: `PeftModel.from_pretrained(base, folder)`.

        Raises:
            OSError: the disk is full, or the folder cannot be written; nothing is left half-written.
        """
        # PEFT puts every adapter not named "default" into a subfolder.
        parent = Path(folder).with_name(f".{Path(folder).name}.tmp")
        try:
            self.peft.save_pretrained(str(parent), selected_adapters=[POLICY])
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(parent / POLICY, folder)
        except SafetensorError as error:
            raise system_error(error) from error
        finally:
            shutil.rmtree(parent, ignore_errors=True)

    def prompt(self, sample: Sample) -> Prompt:
        """Return the encoded prompt of a sample; recent ones are cached.

        Raises:
            ValueError: see `encode_prompt`.
        """
        key = (sample.key, sample.turns)
        if key not in self._prompts:
            self._prompts[key] = encode_prompt(
                sample,
                core=self.core,
                processor=self.processor,
                max_tokens=self.config.max_prompt_tokens,
            )
        return self._prompts[key]

    def clear_caches(self) -> None:
        """Forget prompts and features of pictures."""
        self._prompts.clear()
        self.vision.clear()

    def tokenize(self, text: str, *, end: bool = True) -> Tensor:
        """Return token ids (int64 [C]) of completion text, closed by the end token if `end`."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor([*ids, self.end_id] if end else ids)

    def hidden_states(self, pack: Pack, *, checkpoint: bool = True) -> Tensor:
        """Run a pack under the active role: `forward_pack` of models/packing.py."""
        pictures = [picture for prompt in pack.prompts for picture in prompt.pictures]
        features = self.vision.features(pictures)
        return forward_pack(
            self.core, pack, features, attention=self.attention, checkpoint=checkpoint
        )

    @property
    def head_weight(self) -> Tensor:
        """The frozen output embedding [V, D]."""
        return self.core.get_output_embeddings().weight

    def next_logits(self, hidden_RD: Tensor) -> Tensor:
        """Compute logits, float32 [R, V], as exact as the policy loss computes the same log-probs."""
        return tk.mm_float32(hidden_RD, self.head_weight.T)


def load_backbone(model: ModelConfig, lora: LoraConfig, path: str, *, seed: int) -> Backbone:
    """Load a Qwen3-VL from a hub id or folder and give it a fresh policy adapter.

    Raises:
        ValueError: the path does not hold a Qwen3-VL.
        RuntimeError: the machine lacks what the recipe needs.
    """
    if model.revision is not None and Path(path).is_dir():
        raise ValueError(
            f"model.revision = {model.revision!r}: {path} is a folder, and only a hub id has revisions; "
            "leave it out, or name the hub id."
        )
    card = card_of(model)
    precision = choose_precision(model, card)
    backend, loader = choose_backend(model, card)
    use_tensor_cores(precision, card)
    loader = "; ".join([loader, *warnings_of(card)])
    try:
        if backend == "unsloth":
            core = load_with_unsloth(path, model, precision, seed=seed)
        else:
            core = load_with_transformers(path, model, precision)
        processor = load_processor(path, model.revision)
    except (OSError, ValueError) as error:  # no such folder or id; not a model
        raise ValueError(
            f"model.name = {model.name!r}: cannot load it ({str(error).splitlines()[0]}). Give a hub id "
            "or a folder of a Qwen3-VL; a hub id needs network access once."
        ) from error
    if core.config.model_type != family.MODEL_TYPE:
        raise ValueError(
            f"model.name = {model.name!r} is a {core.config.model_type}, not a {family.MODEL_TYPE}; "
            "this edition trains Qwen3-VL models only."
        )
    processor.image_processor.size = {
        "shortest_edge": model.min_pixels,
        "longest_edge": model.max_pixels,
    }
    keep_cpu_weights_unpacked(core)
    apply_model_settings(core, model, precision)
    torch.manual_seed(seed)  # PEFT initialises LoRA A from the global generator
    return Backbone(core, processor, model, lora, precision, loader)


def apply_model_settings(core: Core, model: ModelConfig, precision: Precision) -> None:
    """Apply settings that change a loaded model itself, before it gets adapters.

    Raises:
        ValueError: see `keep_embeddings_on_cpu`.
    """
    family.use_linear_patch_embedding(core)
    if model.float32_vision:
        family.vision_tower(core).float()
    if precision.compute_dtype != torch.float32:
        fuse_norms(core)
    if precision.float32_residual:
        keep_residual_in_float32(core, precision.compute_dtype)
    if model.embeddings_on_cpu:
        keep_embeddings_on_cpu(core)


def _peft_config(lora: LoraConfig) -> PeftLoraConfig:
    return PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=family.LANGUAGE_LINEARS,
        task_type="CAUSAL_LM",
    )


def encode_samples(backbone: Backbone, samples: Sequence[Sample]) -> list[Prompt]:
    """Encode the prompts of many samples, and their pictures."""
    prompts = [backbone.prompt(sample) for sample in samples]
    backbone.vision.features([picture for prompt in prompts for picture in prompt.pictures])
    return prompts
