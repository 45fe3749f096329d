"""Rules that tie several settings together; the types in `prism_lite.config` check single ones."""

from __future__ import annotations

import difflib
from typing import Literal

from prism_lite.config import (
    BUILT_IN_REWARDS,
    LOSSES_BY_TOKEN,
    DiscriminatorConfig,
    ModelConfig,
    RlvrConfig,
    RunConfig,
    WarmupConfig,
)

_FILE_SETTINGS = ("train", "warmup", "align", "rlvr", "heldout", "image_root", "columns")


def check_across_fields(config: RunConfig) -> None:
    """Check the settings against each other.

    Raises:
        ValueError: two settings contradict each other, or one has no effect.
    """
    _check_discriminator(config.discriminator)
    _check_warmup(config.warmup)
    _check_memory(config.model, config.sampling.max_completion_tokens)
    _check_rewards(config.rlvr)
    if config.data.task == "digits":
        for name in _FILE_SETTINGS:
            if value := getattr(config.data, name):
                raise ValueError(
                    f"data.{name} = {value} has no effect with data.task = digits, the embedded task: add "
                    "data.task=files (or --recipe tiny-files) to train on files, or leave it out."
                )
    if config.eval.keep == "best" and config.eval.every == 0:
        raise ValueError(
            "eval.keep = best needs evaluations to choose from: set eval.every to a number of steps."
        )
    digits, align, rlvr = config.data.digits, config.align, config.rlvr
    if config.data.boxes.predicted_unit and not config.data.boxes.unit:
        raise ValueError(
            f"data.boxes.predicted_unit = {config.data.boxes.predicted_unit} cannot be compared with "
            "gold boxes of an unknown unit: set data.boxes.unit=pixels or thousandths."
        )
    if digits.min_digits > digits.max_digits:
        raise ValueError(
            f"data.digits.min_digits = {digits.min_digits} is more than data.digits.max_digits = "
            f"{digits.max_digits}: lower the one or raise the other."
        )
    if align.method != "adversarial" and align.mode != "align":
        raise ValueError(
            f"align.mode = {align.mode} combines the discriminator's scores with rewards, and "
            f"align.method = {align.method} has no discriminator: set align.mode=align, or "
            "align.method=adversarial."
        )
    if rlvr.game == "blind" and rlvr.dynamic_sampling:
        raise ValueError(
            "rlvr.dynamic_sampling drops the groups without spread in accuracy, and rlvr.game = blind "
            "learns in no others: set one of them only, or rlvr.game=on."
        )
    if rlvr.teacher_rollout:
        _check_teacher_rollout(rlvr)
    if config.discriminator.scores == "oracle" and config.data.task != "digits":
        raise ValueError(
            "discriminator.scores = oracle needs a task that verifies captions and thinks: data.task = "
            "digits."
        )
    if rlvr.combine == "normalize_then_sum" and rlvr.scale != "group":
        raise ValueError(
            f"rlvr.scale = {rlvr.scale} has no effect with rlvr.combine = normalize_then_sum, which "
            "standardises each reward in its group: leave rlvr.scale at group."
        )


def _check_teacher_rollout(config: RlvrConfig) -> None:
    if config.loss.name not in LOSSES_BY_TOKEN:
        raise ValueError(
            f"rlvr.teacher_rollout shapes the ratio of each token, and rlvr.loss.name = "
            f"{config.loss.name} has no such ratio: set {', '.join(LOSSES_BY_TOKEN)}."
        )
    if config.game != "off":
        raise ValueError(
            f"rlvr.teacher_rollout and rlvr.game = {config.game}: the discriminator would compare the "
            "teacher with itself. Set one of them only."
        )


def alignment_verifies(config: RunConfig) -> bool:
    """Return whether alignment uses the rewards of its rollouts."""
    return config.align.mode != "align" or config.align.method == "best_of_n"


def plays_game(config: RunConfig) -> bool:
    """Return whether any stage has a discriminator, so that the warm-up is needed."""
    return config.align.method == "adversarial" or config.rlvr.game != "off"


def discriminator_before_rlvr(config: RunConfig) -> Literal["warmup", "align"]:
    """Return the stage whose discriminator RLVR continues, where the game is kept on."""
    is_aligned = config.rlvr.start == "align" and config.align.method == "adversarial"
    return "align" if is_aligned else "warmup"


def _check_discriminator(config: DiscriminatorConfig) -> None:
    num_usable = config.num_experts
    if config.routing == "grouped":
        if num_usable % 2:
            raise ValueError(
                f"discriminator.num_experts = {num_usable} cannot be split into a perception and a "
                "reasoning half: give an even number, or discriminator.routing=free."
            )
        num_usable //= 2
    if config.routing != "dense" and config.top_k > num_usable:
        raise ValueError(
            f"discriminator.top_k = {config.top_k} is more than the {num_usable} experts that a token "
            "may use: lower it, or raise discriminator.num_experts."
        )


def game_begins_in_rlvr(config: RunConfig) -> bool:
    """Return whether RLVR is the first stage in which the policy meets the warm-up's discriminator."""
    return config.rlvr.game != "off" and (
        discriminator_before_rlvr(config) == "warmup" or config.align.steps == 0
    )


def _check_warmup(config: WarmupConfig) -> None:
    if config.pairs_per_step % config.group_size:
        raise ValueError(
            f"warmup.pairs_per_step = {config.pairs_per_step} is not a multiple of warmup.group_size = "
            f"{config.group_size}, the students of one prompt: change the one or the other."
        )
    if config.mismatched_fraction + config.corrupted_fraction > 1:
        raise ValueError(
            f"warmup.mismatched_fraction = {config.mismatched_fraction:g} and "
            f"warmup.corrupted_fraction = {config.corrupted_fraction:g} are shares of the same negatives "
            "and add up to more than 1: lower one of them."
        )


def _check_memory(model: ModelConfig, max_completion_tokens: int) -> None:
    # Whether each row fits with its own prompt is checked when the rows are read (stages/read_prompts.py).
    if max_completion_tokens >= model.max_pack_tokens:
        raise ValueError(
            f"sampling.max_completion_tokens = {max_completion_tokens} does not fit after a prompt into "
            f"model.max_pack_tokens = {model.max_pack_tokens}: lower the one or raise the other."
        )
    if model.offload_checkpoints and not model.gradient_checkpointing:
        raise ValueError(
            "model.offload_checkpoints = true has no effect without gradient checkpointing: set "
            "model.gradient_checkpointing=true too."
        )


def _check_rewards(config: RlvrConfig) -> None:
    if not config.rewards:
        raise ValueError("rlvr.rewards is empty: name at least one reward, as {accuracy: 1.0}.")
    for name, weight in config.rewards.items():
        if ":" not in name and name not in BUILT_IN_REWARDS:
            near = difflib.get_close_matches(name, BUILT_IN_REWARDS, 1, 0.6)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise ValueError(
                f"rlvr.rewards.{name}: expected {', '.join(BUILT_IN_REWARDS)}, package.module:function "
                f"or path/to/file.py:function{hint}"
            )
        if weight == 0:
            raise ValueError(
                f"rlvr.rewards.{name} = 0 has no effect: leave the name out of rlvr.rewards, as in "
                "rlvr.rewards='{accuracy: 1.0}'."
            )
    metric_names = [name.rpartition(":")[2] for name in config.rewards]
    for name in metric_names:
        if metric_names.count(name) > 1:
            raise ValueError(
                f"rlvr.rewards has two rewards called {name}, and their metrics would have one name: "
                "rename one of the functions."
            )
    if "judge" in config.rewards and not (config.judge.base_url and config.judge.model):
        raise ValueError(
            "rlvr.rewards has judge, but no judge is set: give rlvr.judge.base_url (like "
            "http://localhost:8000/v1) and rlvr.judge.model."
        )
