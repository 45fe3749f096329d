"""Settings: frozen dataclasses, one per concern, whose defaults are the embedded task's.

`recipe.py` reads recipes (YAML overlays on these) and checks values. `prism-lite run --dry-run` prints
the resolved settings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import pydantic
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

Share = Annotated[float, Field(ge=0, le=1)]
_FORBID_EXTRA: pydantic.ConfigDict = {"extra": "forbid", "allow_inf_nan": False}


# Policy losses, by TRL's names (METHOD.md section 11); "dapo" is a mean over the batch's tokens.
PolicyLoss = Literal["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "gspo_token", "cispo", "sapo"]
# PRISM's six ways to combine alignment with verifiable rewards, see advantages.alignment_advantages.
AlignMode = Literal["align", "acc_gate", "gated", "rlvr", "rlvr_v2", "sign_align"]
RewardScale = Literal["group", "batch", "none"]
RewardCombination = Literal["sum_then_normalize", "normalize_then_sum"]
KlKind = Literal["k1", "k2", "k3"]
# A reward of rlvr.rewards is one of these, package.module:function, or path/to/file.py:function.
BUILT_IN_REWARDS = ("accuracy", "format", "ocr", "boxes", "judge", "overlong")
Kind = Literal["sum", "largest", "smallest", "difference", "count", "compare"]


@dataclass(frozen=True)
class DigitsConfig:
    """How hard the embedded task is and how often its sources slip. Rates are per completion."""

    __pydantic_config__: ClassVar = _FORBID_EXTRA
    min_digits: Annotated[int, Field(ge=2)] = 3
    max_digits: PositiveInt = 4
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = (
        "sum", "largest", "smallest", "difference", "count", "compare",
    )  # fmt: skip
    demonstration_misread_rate: Share = 0.2
    demonstration_slip_rate: Share = 0.35
    teacher_misread_rate: Share = 0.01
    teacher_slip_rate: Share = 0.01
    # How often each wording is used: three ways to say a caption, two to write a think.
    demonstration_caption_weights: tuple[float, float, float] = (0.4, 0.35, 0.25)
    demonstration_think_weights: tuple[float, float] = (0.55, 0.45)
    teacher_caption_weights: tuple[float, float, float] = (0.25, 0.4, 0.35)
    teacher_think_weights: tuple[float, float] = (0.45, 0.55)


@dataclass(frozen=True)
class DataConfig:
    """Where samples come from."""

    __pydantic_config__: ClassVar = _FORBID_EXTRA
    task: Literal["digits", "files"] = "digits"
    train: str | None = None  # files: demonstrations, teacher completions and answers, by row
    # files: recorded pairs of teacher and student for the warm-up; default: the SFT policy answers
    # the prompts of `align`
    warmup: str | None = None
    align: str | None = None  # files: rows with a teacher completion; default: those of `train`
    rlvr: str | None = None  # files: rows with an answer; default: those of `train`
    heldout: str | None = None  # files: evaluation rows; required for results
    image_root: str | None = None  # relative picture paths start here; default: the file's folder
    columns: dict[str, str] = field(default_factory=dict)  # our field name -> the file's column
    on_bad_row: Literal["error", "skip"] = "error"  # skip: what it leaves out is in skipped.jsonl
    system_prompt: str | None = None  # default: the three-part instruction of parts.py
    num_sft: PositiveInt = 2048  # digits: how many samples of each kind to draw
    num_align: PositiveInt = 1024
    num_rlvr: PositiveInt = 1024
    num_heldout: PositiveInt = 256
    digits: DigitsConfig = field(default_factory=DigitsConfig)


@dataclass(frozen=True)
class TinyConfig:
    """The tiny base model of the embedded task: its size and how it is trained from scratch."""

    __pydantic_config__: ClassVar = _FORBID_EXTRA
    hidden_size: PositiveInt = 128
    num_layers: PositiveInt = 4
    num_heads: PositiveInt = 4
    num_key_value_heads: PositiveInt = 2
    intermediate_size: PositiveInt = 384
    vision_hidden_size: PositiveInt = 96
    vision_depth: PositiveInt = 3
    vocab_size: PositiveInt = 512
    vision_steps: NonNegativeInt = 250  # vision tower alone, as a digit classifier
    steps: NonNegativeInt = 450
    batch_size: PositiveInt = 16  # lessons; each has two replies
    learning_rate: PositiveFloat = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """Which backbone, and how it is held in memory."""

    __pydantic_config__: ClassVar = _FORBID_EXTRA
    name: str = "tiny"  # "tiny", a hub id, or a folder of a Qwen3-VL
    backend: Literal["auto", "transformers", "unsloth"] = "auto"  # who loads it
    quantization: Literal["nf4", "none"] = "nf4"
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "parts", "mask", "flex"] = "auto"  # of packs: tree_attention.py
    device: Literal["auto", "cpu", "cuda"] = "auto"
    float32_vision: bool = False  # a 16-bit tower may overflow on some pictures; +0.8 GiB
    min_gpu_gib: NonNegativeFloat = 0.0  # recipes for a card name its size; 0 runs anywhere
    gradient_checkpointing: bool = False
    offload_checkpoints: bool = False  # their inputs wait in the CPU's memory
    vision_on_cpu: bool = False  # the tower visits the card while it encodes; -0.8 GiB
    embeddings_on_cpu: bool = False  # only where they are not tied to the head (8B); -1.2 GiB
    max_prompt_tokens: PositiveInt = 2048
    max_pack_tokens: PositiveInt = 8192  # tokens of one forward with gradient
    min_pixels: PositiveInt = 32 * 32
    max_pixels: PositiveInt = 512 * 512
    max_cached_pictures: PositiveInt = 8192  # features of this many pictures stay on the device,
    picture_cache_gib: PositiveFloat = 1.0  # up to this size,
    picture_disk_gib: NonNegativeFloat = 0.0  # and of more on disk (in the cache folder); 0: none


@dataclass(frozen=True)
class LoraConfig:
    """The policy's adapter on every linear of the language model."""

    __pydantic_config__: ClassVar = _FORBID_EXTRA
    rank: PositiveInt = 16
    alpha: PositiveInt = 32


@dataclass(frozen=True)
class OptimConfig:
    """One optimizer and its schedule."""

    __pydantic_config__: ClassVar = _FORBID_EXTRA
    learning_rate: PositiveFloat = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_ratio: Share = 0.0
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    name: Literal["auto", "adamw", "adamw8bit", "paged_adamw8bit"] = "adamw"


@dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn."""

    __pydantic_config__: ClassVar = _FORBID_EXTRA
    temperature: NonNegativeFloat = 1.0  # evaluation uses 1 and 0 (greedy) whatever this is
    max_completion_tokens: PositiveInt = 64
    top_k: NonNegativeInt = 0  # 0: no limit
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Share = 0.0  # tokens below this share of the likeliest are not drawn
    max_rows: NonNegativeInt = 0  # rollouts decoded side by side; 0: what memory allows, up to 512
    # Dequantised, merged weights while sampling: auto is on a CPU with memory to spare.
    dense_weights: Literal["auto", "always", "never"] = "auto"


@dataclass(frozen=True)
class SftConfig:
    """Stage 1: imitation of the public demonstrations."""

    __pydantic_config__: ClassVar = _FORBID_EXTRA
    start_from: str | None = None  # a PEFT folder or hub id; default: a fresh adapter
    steps: NonNegativeInt = 100  # 0 skips it: the model, or start_from, is the SFT policy
    batch_size: PositiveInt = 32  # per step; accumulated over packs of model.max_pack_tokens
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(2e-3, schedule="cosine", warmup_ratio=0.1)
    )


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The LoRA mixture of experts that scores parts. METHOD section 2."""

    __pydantic_config__: ClassVar = _FORBID_EXTRA
    routing: Literal["grouped", "free", "dense"] = "grouped"
    trunk: Literal["sft", "base"] = "sft"
    num_experts: PositiveInt = 8  # half for perception, half for reasoning
    top_k: PositiveInt = 2
    rank: PositiveInt = 16
    scale: PositiveFloat = 2.0
    adapted_fraction: Share = 0.5  # of the decoder layers, from the top
    likelihood_features: bool = True
    reasoning_sees_caption: bool = False
    max_part_tokens: Annotated[int, Field(ge=16)] = 512  # the same for teacher and student
    score_cap: PositiveFloat = 10.0  # c * tanh(s / c)
    score_penalty: NonNegativeFloat = 1e-3  # on the mean square of the scores
    balance_weight: NonNegativeFloat = 1e-2
    grgc_weight: NonNegativeFloat = 0.0  # keeps a group's scores apart; 0.01 in the paper
    prompt_cache_gib: NonNegativeFloat = (
        0.5  # prompt states of the frozen trunk, kept on the device
    )
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(2e-3))


@dataclass(frozen=True)
class WarmupConfig:
    """Stage 2: the discriminator learns teacher against SFT samples."""

    __pydantic_config__: ClassVar = _FORBID_EXTRA
    steps: NonNegativeInt = 150
    pairs_per_step: PositiveInt = 24
    num_prompts: PositiveInt = 768  # the student answers these once (not with data.warmup)
    mismatched_fraction: Share = 0.0  # of the negatives: teacher parts of another prompt
    num_probe: PositiveInt = 200  # held-out pairs of the grounding and artefact probes
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(3e-3, schedule="cosine", warmup_ratio=0.1)
    )


@dataclass(frozen=True)
class PolicyLossConfig:
    """The loss of the policy on its own rollouts, in alignment and in RLVR."""

    __pydantic_config__: ClassVar = _FORBID_EXTRA
    name: PolicyLoss = "dapo"
    clip_low: PositiveFloat = 0.2  # the ratio's bounds are 1 - low and 1 + high (cispo: 1 + high)
    clip_high: PositiveFloat = 0.2
    clip_dual: Annotated[float, Field(gt=1)] | None = 3.0  # bound of the ratio where A < 0
    sapo_temperature_positive: PositiveFloat = 1.0
    sapo_temperature_negative: PositiveFloat = 1.05
    entropy_weight: NonNegativeFloat = 0.0  # bonus per nat of mean token entropy


@dataclass(frozen=True)
class AlignConfig:
    """Stage 3: the adversarial game, or what it is compared with. METHOD section 3."""

    __pydantic_config__: ClassVar = _FORBID_EXTRA
    # dpo: the teacher over one frozen sample of the SFT policy (as SODA). sft: teacher data only.
    # Both go without discriminator and warm-up, with prompts_per_step rows per step.
    method: Literal["adversarial", "dpo", "sft"] = "adversarial"
    steps: NonNegativeInt = 30
    prompts_per_step: PositiveInt = 8
    group_size: PositiveInt = 8
    num_minibatches: PositiveInt = 1  # optimizer steps per batch of rollouts
    loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    alpha: Share = 0.5  # weight of perception; reasoning has the rest
    malformed_penalty: NonNegativeFloat = 1.5
    # The modes other than "align" need an answer in every row of data.align; their verifiable
    # reward has the weights of rlvr. "rlvr" keeps the game on during RLVR.
    mode: AlignMode = "align"
    weight: NonNegativeFloat = 1.0  # of the discriminator's advantage, in those modes
    wrong_penalty: NonNegativeFloat = 1.0  # in those modes that subtract one
    # Share of earlier rollouts in the discriminator's batch, against forgetting; 0.5 in RARO.
    replay_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    replay_prompts: PositiveInt = 256  # whose rollouts are kept, in memory and in checkpoints
    dpo_beta: PositiveFloat = 0.1
    panel_every: PositiveInt = 10  # steps between convergence panels on held-out pairs
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(3e-4))


@dataclass(frozen=True)
class JudgeConfig:
    """Where the LLM judge of RLVR is; used only where `rlvr.rewards` names `judge`."""

    __pydantic_config__: ClassVar = _FORBID_EXTRA
    base_url: str = ""  # OpenAI-compatible, up to and with "/v1"
    model: str = ""  # the name that the endpoint knows
    key_variable: str = "PRISM_JUDGE_API_KEY"  # environment variable with the key; unset: none sent
    timeout_s: PositiveFloat = 30.0  # for one request
    num_attempts: PositiveInt = 3  # tries per answer before it is an error


@dataclass(frozen=True)
class RlvrConfig:
    """Stage 4: reinforcement learning with verifiable rewards. METHOD section 4."""

    __pydantic_config__: ClassVar = _FORBID_EXTRA
    start: Literal["align", "sft"] = "align"  # the stage whose policy it goes on from
    steps: NonNegativeInt = 60
    prompts_per_step: PositiveInt = 8
    group_size: PositiveInt = 8
    num_minibatches: PositiveInt = 1  # optimizer steps per batch of rollouts
    # Official numbers of an algorithm (recipes/rlvr/NAME.yaml) for what the recipe does not set.
    preset: Literal["grpo", "dapo", "gspo"] = "grpo"
    loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    kl_weight: NonNegativeFloat = 0.0  # 0: no reference is held or run
    kl_kind: KlKind = "k3"  # k1 in the loss has a gradient of mean zero: use it in the reward
    kl_in: Literal["loss", "reward"] = "loss"  # the reward's is summed over a rollout's tokens
    kl_reference: Literal["start", "base"] = "start"  # the stage's first policy, or no adapter
    rewards: dict[str, float] = field(default_factory=lambda: {"accuracy": 0.8, "format": 0.2})
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    overlong_buffer: Annotated[float, Field(gt=0, le=1)] = 0.5  # share of the limit it acts in
    mask_truncated: bool = False  # rollouts cut at the limit take no part in the loss
    scale: RewardScale = "group"  # deviation that advantages are divided by
    combine: RewardCombination = "sum_then_normalize"  # or GDPO's normalize_then_sum
    dynamic_sampling: bool = False  # replace groups without spread in accuracy by new ones
    max_sampled_batches: PositiveInt = 10  # per step, with dynamic sampling; then it goes on
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(5e-4))


@dataclass(frozen=True)
class EvalConfig:
    """Held-out figures after each stage."""

    __pydantic_config__: ClassVar = _FORBID_EXTRA
    num_samples: PositiveInt = 4  # completions per prompt at temperature 1
    num_prompts: NonNegativeInt = 0  # the first of the held-out ones; 0: all
    stages: tuple[Literal["base", "sft", "align", "rlvr"], ...] = ("base", "sft", "align", "rlvr")


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on; written to config.yaml of the run folder."""

    __pydantic_config__: ClassVar = _FORBID_EXTRA
    recipe: str = "tiny"
    seed: int = 0
    save_every: PositiveInt = 20  # steps between checkpoints
    track: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()  # beside metrics.jsonl
    model: ModelConfig = field(default_factory=ModelConfig)
    tiny: TinyConfig = field(default_factory=TinyConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    rlvr: RlvrConfig = field(default_factory=RlvrConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
