"""Settings: frozen dataclasses, one per concern, whose defaults are the embedded task's.

The text under a field is its documentation: `prism-lite settings` prints it. `recipe.py` reads recipes
(YAML overlays on these settings) and checks values. Here are the stages; `inputs.py` has data, models,
optimizers and sampling.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from prism_lite.config.inputs import (  # noqa: F401 - every settings class is imported from here
    STRICT,
    BoxesConfig,
    DataConfig,
    DigitsConfig,
    Kind,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    SamplingConfig,
    Share,
    TinyConfig,
)

# Policy losses, by TRL's names (METHOD.md section 11); "dapo" is a mean over the batch's tokens.
PolicyLoss = Literal["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "gspo_token", "cispo", "sapo"]
LOSSES_BY_TOKEN = ("grpo", "bnpo", "dr_grpo", "dapo")  # one clipped ratio per token
# PRISM's six ways to combine alignment with verifiable rewards: policy/advantages.py.
AlignMode = Literal["align", "acc_gate", "gated", "rlvr", "rlvr_v2", "sign_align"]
RewardScale = Literal["group", "batch", "none"]
RewardCombination = Literal["sum_then_normalize", "normalize_then_sum"]
RlvrPreset = Literal["grpo", "dapo", "gspo"]
KlKind = Literal["k1", "k2", "k3"]
BUILT_IN_REWARDS = ("accuracy", "format", "ocr", "boxes", "judge", "overlong")
REWARDS_THAT_READ_ANSWERS = ("accuracy", "ocr", "boxes", "judge")
# Figures of an evaluation inside a stage.
InsideFigure = Literal[
    "accuracy", "transfer_accuracy", "caption_accuracy", "think_validity", "format_rate"
]
# YAML reads the words on and off as true and false.
Game = Annotated[
    Literal["off", "on", "blind"],
    BeforeValidator(lambda value: {True: "on", False: "off"}.get(value, value)),
]
EvaluatedStage = Literal["base", "sft", "control", "align", "rlvr"]


@dataclass(frozen=True)
class SftConfig:
    """Stage 1: imitation of the public demonstrations."""

    __pydantic_config__: ClassVar = STRICT
    start_from: str | None = None
    "PEFT folder or hub id of an adapter to start from. null: a new adapter."
    steps: NonNegativeInt = 100
    "Optimizer updates. 0 skips the stage: the model, or sft.start_from, is the SFT policy."
    batch_size: PositiveInt = 32
    "Demonstrations per step, accumulated over packs of model.max_pack_tokens."
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(2e-3, schedule="cosine", warmup_ratio=0.1)
    )


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The LoRA mixture of experts that scores captions and thinks. METHOD section 2."""

    __pydantic_config__: ClassVar = STRICT
    routing: Literal["grouped", "free", "dense"] = "grouped"
    "grouped: half of the experts for each kind of part. free: all for both. dense: one expert."
    trunk: Literal["sft", "base"] = "sft"
    "Frozen model under the experts: with the SFT adapter, or the base alone."
    num_experts: PositiveInt = 8
    "Experts per adapted layer; with grouped routing half for captions, half for thinks."
    top_k: PositiveInt = 2
    "Experts that each token uses."
    rank: PositiveInt = 16
    "Rank of each expert."
    scale: PositiveFloat = 2.0
    "The experts' output is multiplied by this."
    adapted_fraction: Share = 0.5
    "Share of the decoder layers with experts, from the top; those below store no activations."
    likelihood_features: bool = True
    "Give the score heads each part's mean and lowest token log-prob, less those of the teacher's."
    reasoning_sees_caption: bool = True
    "Score a think with its caption before it: whether it follows depends on what was read."
    max_part_tokens: Annotated[int, Field(ge=16)] = 512
    "Captions and thinks are cut here, the teacher's and the student's alike."
    score_cap: PositiveFloat = 10.0
    "Largest score c: a score s becomes c * tanh(s / c)."
    score_penalty: NonNegativeFloat = 1e-3
    "Weight of the mean squared score in the loss. 0: off."
    balance_weight: NonNegativeFloat = 1e-2
    "Weight of the loss that balances the load of the experts. 0: off."
    grgc_weight: NonNegativeFloat = 0.0
    "Weight of the penalty that spreads the scores of a group; 0.01 in its paper. 0: off."
    scores: Literal["learned", "frozen", "oracle"] = "learned"
    """frozen: an untrained discriminator that never learns; oracle: the exact verdicts of the task, where
    it has them. Both are controls of a study."""
    prompt_cache_gib: NonNegativeFloat = 0.5
    "Most GiB of prompt states of the frozen trunk kept on the device. 0: none."
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(2e-3))


@dataclass(frozen=True)
class WarmupConfig:
    """Stage 2: the discriminator learns the teacher against SFT samples."""

    __pydantic_config__: ClassVar = STRICT
    steps: NonNegativeInt = 150
    "Most optimizer updates of the discriminator. 0: it stays untrained."
    pairs_per_step: PositiveInt = 24
    "Pairs of a teacher completion and a student per step: a multiple of warmup.group_size."
    group_size: PositiveInt = 4
    "Samples of the SFT policy for each prompt."
    num_prompts: PositiveInt = 192
    """Prompts that the SFT policy answers before the first step (without data.warmup): those that
    alignment reaches last."""
    mismatched_fraction: Share = 0.0
    """Share of the negatives that are the teacher's parts of another prompt with another picture. 0:
    none."""
    corrupted_fraction: Share = 0.25
    """Share of the negatives that are the teacher's parts with a wrong fact: the task's own, or another
    digit in a number of the text. 0: none."""
    check_every: PositiveInt = 25
    "Steps between measurements on prompts that the warm-up does not train on."
    patience: NonNegativeInt = 3
    "The warm-up ends after this many of them without a lower loss. 0: it makes all warmup.steps."
    num_probe: PositiveInt = 200
    "Held-out pairs of the grounding and artefact probes."
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(3e-3, schedule="cosine", warmup_ratio=0.1)
    )


@dataclass(frozen=True)
class PolicyLossConfig:
    """The loss of the policy on its own rollouts. METHOD section 11."""

    __pydantic_config__: ClassVar = STRICT
    name: PolicyLoss = "dapo"
    "Policy loss, by TRL's names. grpo, bnpo, dr_grpo and dapo differ in what they divide by."
    clip_low: PositiveFloat = 0.2
    "The ratio's lower bound is 1 - clip_low; cispo and sapo have none."
    clip_high: PositiveFloat = 0.2
    """The ratio's upper bound is 1 + clip_high; sapo has none. gspo needs about 4e-4: its ratio is that of
    a complete rollout."""
    clip_dual: Annotated[float, Field(gt=1)] | None = 3.0
    """Upper bound of the ratio where the advantage is negative (dual clip); cispo and sapo have none.
    null: off."""
    sapo_temperature_positive: PositiveFloat = 1.0
    "Temperature of sapo's gate where the advantage is positive."
    sapo_temperature_negative: PositiveFloat = 1.05
    "Temperature of sapo's gate where the advantage is negative."
    entropy_weight: NonNegativeFloat = 0.0
    "Bonus per nat of mean token entropy. 0: off."


@dataclass(frozen=True)
class AlignConfig:
    """Stage 3: adversarial alignment, or one of its baselines. METHOD section 3."""

    __pydantic_config__: ClassVar = STRICT
    method: Literal["adversarial", "dpo", "sft", "best_of_n"] = "adversarial"
    """dpo: prefer the teacher to one frozen sample of the SFT policy. sft: imitate the teacher. best_of_n:
    imitate the best accepted one of group_size samples of the SFT policy. These three have no
    discriminator and no warm-up, and use prompts_per_step rows per step."""
    steps: NonNegativeInt = 30
    "Optimizer updates. 0 skips the stage."
    prompts_per_step: PositiveInt = 8
    "Prompts per step, each with a group of rollouts."
    group_size: Annotated[int, Field(ge=2)] = 8
    "Rollouts per prompt: advantages are relative to the group."
    num_minibatches: PositiveInt = 1
    "Optimizer updates of the policy per batch of rollouts. 1: clipping has no effect."
    loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    alpha: Share = 0.5
    "Weight of the perception advantage; reasoning has the rest."
    spread_floor: NonNegativeFloat = 1.0
    """Smallest deviation that a group's scores are divided by, as a multiple of the usual one, so that
    groups that differ in wording only count little. 0: no floor."""
    malformed_penalty: NonNegativeFloat = 1.5
    "Advantage that a malformed rollout loses. 0: none."
    mode: AlignMode = "align"
    """How scores are combined with verifiable rewards. align: scores only. The other modes need an
    answer in every row of data.align and use rlvr.rewards."""
    weight: NonNegativeFloat = 1.0
    "Weight of the discriminator's advantage (all modes but align). 0: off."
    wrong_penalty: NonNegativeFloat = 1.0
    "Penalty of a wrong answer (modes acc_gate, gated, rlvr_v2, sign_align). 0: off."
    replay_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    "Share of earlier rollouts in the discriminator's batch, against forgetting. 0: off."
    replay_prompts: PositiveInt = 256
    "Prompts whose rollouts are kept for replay, in memory and in checkpoints."
    gate: Literal["stop", "warn"] = "stop"
    """What happens before the first step if the probes do not show that the discriminator judges content
    on every channel that has weight (align.alpha). stop: an error. warn: a warning."""
    early_stop: bool = False
    "End the stage when the teacher wins under half of the held-out pairs in three panels in a row."
    dpo_beta: PositiveFloat = 0.1
    "Inverse temperature of DPO: a lower one lets the policy move further (method dpo)."
    panel_every: PositiveInt = 10
    "Steps between convergence panels on held-out pairs."
    panel_pairs: PositiveInt = 200
    "Held-out pairs of a panel, evenly spaced among those of the probes: the policy answers each."
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(5e-4))


@dataclass(frozen=True)
class JudgeConfig:
    """The LLM judge, used only where `rlvr.rewards` names judge."""

    __pydantic_config__: ClassVar = STRICT
    base_url: str = ""
    'Address of an OpenAI-compatible endpoint, up to and including "/v1".'
    model: str = ""
    "Model name that the endpoint knows."
    key_variable: str = "PRISM_JUDGE_API_KEY"
    "Environment variable with the API key; none is sent where it is not set."
    timeout_s: PositiveFloat = 30.0
    "Seconds to wait for one reply."
    num_attempts: PositiveInt = 3
    "Tries per answer before the run stops with an error."


@dataclass(frozen=True)
class RlvrConfig:
    """Stage 4: reinforcement learning with verifiable rewards. METHOD section 4."""

    __pydantic_config__: ClassVar = STRICT
    start: Literal["align", "sft"] = "align"
    "Stage whose policy is trained further."
    game: Game = "off"
    """Keep the discriminator's advantage (align.weight, align.alpha) beside the rewards. on: for right
    rollouts. blind: only in groups whose rollouts are all right or all wrong."""
    teacher_rollout: bool = False
    """Make the teacher's completion one of the group_size rollouts, its ratio shaped as in LUFFY
    (arXiv 2504.14945). Every row of data.rlvr needs a teacher completion."""
    control: bool = False
    "Also train RLVR alone, from SFT's policy with as many updates as alignment and RLVR: a baseline."
    steps: NonNegativeInt = 30
    "Optimizer steps, each on a new batch of rollouts. 0 skips the stage."
    prompts_per_step: PositiveInt = 8
    "Prompts per step, each with a group of rollouts."
    group_size: Annotated[int, Field(ge=2)] = 8
    "Rollouts per prompt: advantages are relative to the group."
    num_minibatches: PositiveInt = 1
    "Optimizer updates per batch of rollouts. 1: clipping has no effect."
    preset: RlvrPreset = "grpo"
    "Official numbers of an algorithm (recipes/rlvr/NAME.yaml) for what the recipe leaves open."
    loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    kl_weight: NonNegativeFloat = 0.0
    "Weight of the KL divergence to the reference. 0: off (kl_to_start is measured all the same)."
    kl_kind: KlKind = "k3"
    "Estimator: k1, k2 or k3 of Schulman. In the loss k1 has a gradient of mean zero."
    kl_in: Literal["loss", "reward"] = "loss"
    "loss: at each token. reward: summed over the tokens of a rollout and taken off its reward."
    kl_reference: Literal["start", "base"] = "start"
    "start: the policy at the start of the stage. base: the model without adapter."
    rewards: dict[str, float] = field(default_factory=lambda: {"accuracy": 0.8, "format": 0.2})
    """Weight of each reward: accuracy, format, ocr, boxes, judge, overlong, package.module:function
    or path/to/file.py:function. A mapping replaces all; rlvr.rewards.ocr=0.5 adds or changes one."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    overlong_buffer: Annotated[float, Field(gt=0, le=1)] = 0.5
    "Share of the length limit, at its end, over which the reward overlong falls from 0 to -1."
    mask_truncated: bool = False
    "Leave rollouts that were cut at the length limit out of the loss."
    scale: RewardScale = "group"
    "Deviation that advantages are divided by: the group's, the batch's, or none."
    combine: RewardCombination = "sum_then_normalize"
    "normalize_then_sum: each reward is standardised in its group first, as in GDPO."
    dynamic_sampling: bool = False
    "Replace groups that are all right or all wrong by new ones."
    max_sampled_batches: PositiveInt = 10
    "Batches per step that dynamic sampling may draw; then the step uses what it has."
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(5e-4))


@dataclass(frozen=True)
class EvalConfig:
    """Held-out figures after each stage, and inside it."""

    __pydantic_config__: ClassVar = STRICT
    num_samples: PositiveInt = 4
    "Completions per prompt at temperature 1, beside a greedy one."
    num_prompts: NonNegativeInt = 0
    "Use only the first held-out prompts. 0: all."
    stages: tuple[EvaluatedStage, ...] = ("base", "sft", "control", "align", "rlvr")
    "Stages whose policy is evaluated."
    every: NonNegativeInt = 0
    """Steps between evaluations inside SFT, alignment and RLVR; the last step is evaluated too.
    Curves eval/accuracy and so on. 0: off."""
    num_inside: PositiveInt = 48
    "Prompts of an evaluation inside a stage: evenly spaced held-out rows, the same every time."
    keep: Literal["last", "best"] = "last"
    """Policy that a stage passes to the next one: after its last step, or after the step whose
    evaluation inside the stage was best (of equal ones the earliest). best needs eval.every."""
    best_by: InsideFigure = "accuracy"
    "Figure that eval.keep = best compares."
    drift: bool = True
    "Measure each evaluated policy's distance to the teacher and to its stage's start."


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on; written to config.yaml of the run folder."""

    __pydantic_config__: ClassVar = STRICT
    recipe: str = "tiny"
    "Name of the recipe; the run folder is runs/NAME without --out."
    seed: int = 0
    "Decides every random choice of the run."
    save_every: PositiveInt = 20
    "Steps between checkpoints."
    save_minutes: NonNegativeFloat = 10.0
    "A checkpoint is also saved when the last one is this many minutes old. 0: by steps only."
    max_skipped_steps: PositiveInt = 3
    """A step with NaN or infinity is left out and recorded in skipped_steps.jsonl; the run stops when this
    many in a row are."""
    track: Annotated[
        tuple[Literal["tensorboard", "trackio", "wandb"], ...],
        BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    ] = ()
    "Trackers beside metrics.jsonl. Empty: none."
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
