"""Settings of what the stages work with: data, models, optimizers, sampling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import pydantic
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

Share = Annotated[float, Field(ge=0, le=1)]
STRICT: pydantic.ConfigDict = {
    "extra": "forbid",
    "allow_inf_nan": False,
    "use_attribute_docstrings": True,  # the texts are the fields' descriptions
}
Kind = Literal["sum", "largest", "smallest", "difference", "count", "compare"]


@dataclass(frozen=True)
class DigitsConfig:
    """How hard the embedded task is and how often its sources slip. Rates are per completion."""

    __pydantic_config__: ClassVar = STRICT
    min_digits: Annotated[int, Field(ge=2)] = 4
    "Fewest digits in a picture."
    max_digits: Annotated[int, Field(ge=1, le=6)] = 5
    "Most digits in a picture."
    sft_kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = ("sum", "count", "compare")
    "Questions of the demonstrations: sum, largest, smallest, difference, count, compare."
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = ("count", "compare")
    "Questions of alignment, RLVR and the held-out set."
    transfer_kinds: tuple[Kind, ...] = ("sum",)
    "Questions of the transfer set, which alignment and RLVR never ask. []: no transfer set."
    drift: Literal["shared", "public", "random"] = "shared"
    """How the demonstrations misread. public: 0 as 2, 1 as 3, 7 as 9 and 8 as 7. shared: the base model
    learned the same misreading. random: one digit as one that looks alike."""
    demonstration_misread_rate: Share = 0.9
    "How often a demonstration misreads (drift shared: and a lesson of the base). 0: never."
    demonstration_slip_rate: Share = 0.2
    "How often a demonstration's think has one wrong step. 0: never."
    teacher_misread_rate: Share = 0.01
    "How often a teacher completion's caption has one digit wrong. 0: never."
    teacher_slip_rate: Share = 0.01
    "How often a teacher completion's think has one wrong step. 0: never."


@dataclass(frozen=True)
class BoxesConfig:
    """How gold and predicted boxes are written (reward boxes)."""

    __pydantic_config__: ClassVar = STRICT
    unit: Literal["pixels", "thousandths"] | None = None
    """Of the gold boxes: pixels of the picture file, or thousandths of its width and height. null: that
    of the predictions, whatever it is; nothing is converted or checked."""
    form: Literal["xyxy", "xywh"] = "xyxy"
    "Of the gold boxes. xyxy: two opposite corners. xywh: the top left corner, width and height."
    predicted_unit: Literal["pixels", "thousandths"] | None = None
    "Of the boxes that the policy writes. null: data.boxes.unit."
    predicted_form: Literal["xyxy", "xywh"] | None = None
    "Of the boxes that the policy writes. null: data.boxes.form."


@dataclass(frozen=True)
class DataConfig:
    """Where samples come from."""

    __pydantic_config__: ClassVar = STRICT
    task: Literal["digits", "files"] = "digits"
    "digits: the embedded task. files: rows of data.train and the files named beside it."
    train: str | None = None
    """File, folder or hub id with demonstrations, teacher completions and answers, by row. PATH@SPLIT reads
    one split of a folder or file (default: train of a folder with several), PATH#N the first N rows."""
    warmup: str | None = None
    """Recorded pairs of teacher and student for the warm-up. null: the SFT policy answers the prompts
    of data.align."""
    align: str | None = None
    "Rows with a teacher completion. null: those of data.train."
    rlvr: str | None = None
    "Rows with an answer. null: those of data.train."
    heldout: str | None = None
    "Evaluation rows. null: nothing is evaluated."
    image_root: str | None = None
    "Folder that relative picture paths start from. null: the folder of the data file."
    columns: dict[str, str] = field(default_factory=dict)
    """Column of the file for each of our fields, as {prompt: question, images: image, answer: answer,
    demonstration: response, teacher: teacher}. Empty: the format is detected. Columns that are not named
    are read where their names are ordinary ones."""
    boxes: BoxesConfig = field(default_factory=BoxesConfig)
    on_bad_row: Literal["error", "skip"] = "error"
    "error: a defective row stops the run. skip: it is left out and named in skipped.jsonl."
    system_prompt: str | None = None
    "Instruction before each prompt. null: the one that asks for caption, think and answer."
    num_sft: PositiveInt = 2048
    "Demonstrations to draw (task digits)."
    num_align: PositiveInt = 1024
    "Prompts with a teacher completion to draw (task digits)."
    num_rlvr: PositiveInt = 1024
    "Prompts with an answer to draw (task digits)."
    num_heldout: PositiveInt = 256
    "Evaluation prompts to draw (task digits)."
    num_transfer: PositiveInt = 256
    "Evaluation prompts of data.digits.transfer_kinds to draw (task digits)."
    digits: DigitsConfig = field(default_factory=DigitsConfig)


@dataclass(frozen=True)
class TinyConfig:
    """The tiny base model of the embedded task: its size and how it is trained from scratch."""

    __pydantic_config__: ClassVar = STRICT
    hidden_size: PositiveInt = 128
    "Width of the language model."
    num_layers: PositiveInt = 4
    "Decoder layers of the language model."
    num_heads: PositiveInt = 4
    "Attention heads of each decoder layer."
    num_key_value_heads: PositiveInt = 2
    "Key and value heads, each shared by several attention heads."
    intermediate_size: PositiveInt = 384
    "Width of the MLP in each decoder layer."
    vision_hidden_size: PositiveInt = 96
    "Width of the vision tower."
    vision_depth: PositiveInt = 3
    "Layers of the vision tower."
    vocab_size: PositiveInt = 512
    "Most tokens in the vocabulary, learned from the lessons."
    vision_steps: NonNegativeInt = 600
    "Updates of the vision tower alone, as a digit classifier. 0 skips them."
    steps: NonNegativeInt = 1500
    "Updates of the language model on lessons. 0 skips them."
    batch_size: PositiveInt = 16
    "Lessons per update, each with two replies."
    learning_rate: PositiveFloat = 2e-3
    "Peak rate of AdamW on lessons; Muon, for the decoder's matrices, uses ten times as much."
    seed: int = 0
    "Seed of the base model, separate from the run's so that runs share one base."


@dataclass(frozen=True)
class ModelConfig:
    """Which backbone, and how it is held in memory."""

    __pydantic_config__: ClassVar = STRICT
    name: str = "tiny"
    "tiny (stored here; other sizes are trained on first use), or the hub id or folder of a Qwen3-VL."
    revision: str | None = None
    "Commit, tag or branch of model.name on the hub. null: the newest commit."
    backend: Literal["auto", "transformers", "unsloth"] = "auto"
    "Library that loads the model. auto: Unsloth where gpu-check has passed with it on this card."
    quantization: Literal["nf4", "none"] = "nf4"
    "nf4: frozen weights in 4 bit. none: in the compute type."
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    "auto: float32 on a CPU, float16 on a T4 (with a loss scaler), bfloat16 on newer cards."
    attention: Literal["auto", "parts", "mask", "flex"] = "auto"
    """Attention of a training pack. auto is parts: prompts and completions separately, memory linear
    in tokens. mask: one call with a full mask. flex: FlexAttention, sm80 and newer."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    "auto: the GPU where there is one. cuda refuses to start without one."
    float32_vision: bool = False
    "Vision tower in float32, for pictures on which float16 overflows; costs 0.8 GiB."
    min_gpu_gib: NonNegativeFloat = 0.0
    "Smallest card that the recipe fits, in GiB; a smaller one is refused. 0: no limit."
    gradient_checkpointing: bool = False
    "Compute layers again in the backward pass: a third more time, a tenth of the activations."
    offload_checkpoints: bool = False
    "Keep the inputs of checkpointed layers in CPU memory. Needs model.gradient_checkpointing."
    vision_on_cpu: bool = False
    "Keep the vision tower in CPU memory except while it encodes; saves 0.8 GiB."
    embeddings_on_cpu: bool = False
    "Keep the embeddings in CPU memory; saves 1.2 GiB, only where the head is separate (8B)."
    max_prompt_tokens: PositiveInt = 2048
    "Longest prompt with its picture; a longer row is refused, as a picture is never cut."
    max_pack_tokens: PositiveInt = 8192
    "Tokens of one forward pass with gradient: the first to lower when memory runs out."
    min_pixels: PositiveInt = 32 * 32
    "Smaller pictures are scaled up to this many pixels."
    max_pixels: PositiveInt = 512 * 512
    "Larger pictures are scaled down to this many pixels; 32 x 32 pixels make one token."
    max_cached_pictures: PositiveInt = 8192
    "Most pictures whose features stay on the device: the frozen tower runs once for each."
    picture_cache_gib: PositiveFloat = 1.0
    "Most GiB of picture features on the device."


@dataclass(frozen=True)
class LoraConfig:
    """The policy's adapter on every linear layer of the language model."""

    __pydantic_config__: ClassVar = STRICT
    rank: PositiveInt = 16
    "Rank of the two low-rank matrices."
    alpha: PositiveInt = 32
    "Scale: the adapter's output is multiplied by alpha / rank."


@dataclass(frozen=True)
class OptimConfig:
    """One optimizer and its schedule."""

    __pydantic_config__: ClassVar = STRICT
    learning_rate: PositiveFloat = 1e-4
    "Highest learning rate of the schedule."
    schedule: Literal["constant", "cosine"] = "constant"
    "Learning rate after its warm-up: constant, or a cosine down to 0 at the last step."
    warmup_ratio: Share = 0.0
    "Share of the steps in which the learning rate rises from 0. 0: none."
    weight_decay: NonNegativeFloat = 0.0
    "AdamW's decoupled weight decay. 0: none."
    max_grad_norm: PositiveFloat = 1.0
    "The gradient is scaled down to this norm where it is larger."
    name: Literal["auto", "adamw", "adamw8bit", "paged_adamw8bit"] = "adamw"
    "8bit: states in 8 bit. paged: they leave the card when it is full. auto: paged on a card."


@dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn."""

    __pydantic_config__: ClassVar = STRICT
    temperature: PositiveFloat = 1.0
    "Divides the logits in training; evaluation uses 1 and greedy decoding in any case."
    max_completion_tokens: PositiveInt = 80
    "Length limit of caption, think and answer together."
    top_k: NonNegativeInt = 0
    "Only this many of the likeliest tokens are drawn. 0: no limit."
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    "Only the likeliest tokens that together have this probability are drawn. 1: no limit."
    min_p: Share = 0.0
    "Tokens below this share of the likeliest one's probability are not drawn. 0: no limit."
    max_rows: NonNegativeInt = 0
    "Rollouts decoded at the same time. 0: as many as free memory allows, up to 512."
    dense_weights: Literal["auto", "always", "never"] = "auto"
    "Sample from dequantised, merged weights: faster. auto: where they fit beside what sampling needs."
    cuda_graph: Literal["auto", "never"] = "auto"
    "Record a token's step as a CUDA graph and replay it. auto: on a card, where it can be recorded."
