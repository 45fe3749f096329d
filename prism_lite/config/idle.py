"""Settings that the user gives and that have no effect with the others.

Only those of the command line are checked: recipes keep settings for stages that a run may leave out.
"""

from __future__ import annotations

from collections.abc import Iterator

from prism_lite.config import PolicyLossConfig, RunConfig
from prism_lite.config.checks import alignment_verifies, plays_game

_PENALTY_MODES = ("acc_gate", "gated", "rlvr_v2", "sign_align")


def idle_setting(config: RunConfig, key: str) -> str | None:
    """Return why a setting has no effect with the others, or None if it has one."""
    for starts, is_idle, why, instead in (
        *_by_data_and_model(config),
        *_by_discriminator(config),
        *_by_alignment(config),
        *_by_rlvr(config),
        *_by_loss("align", config.align.loss, config.align.num_minibatches),
        *_by_loss("rlvr", config.rlvr.loss, _num_ratios(config)),
    ):
        if is_idle and key.startswith(starts):
            return f"{key} has no effect with {why}: leave it out, or add {instead}."
    return None


# The beginnings of the settings, whether they are idle, with what, and what would give them an effect.
_Rule = tuple[str | tuple[str, ...], bool, str, str]


def _by_data_and_model(config: RunConfig) -> Iterator[_Rule]:
    is_digits, model = config.data.task == "digits", config.model.name
    for_digits = ("data.digits.", "data.num_")
    for_files = ("data.on_bad_row", "data.boxes.")
    yield for_digits, not is_digits, "data.task = files", "data.task=digits"
    yield for_files, is_digits, "data.task = digits", "data.task=files"
    yield "tiny.", model != "tiny", f"model.name = {model}", "model.name=tiny"
    yield "eval.num_inside", config.eval.every == 0, "eval.every = 0", "eval.every=10"
    yield "eval.best_by", config.eval.keep == "last", "eval.keep = last", "eval.keep=best"


def _by_discriminator(config: RunConfig) -> Iterator[_Rule]:
    method = f"align.method = {config.align.method}"
    of_game = ("warmup.", "discriminator.", "align.alpha", "align.spread_floor", "align.gate",
               "align.panel_every")  # fmt: skip
    of_routing = (
        "discriminator.num_experts",
        "discriminator.top_k",
        "discriminator.balance_weight",
    )
    is_dense = config.discriminator.routing == "dense"
    yield of_game, not plays_game(config), method, "align.method=adversarial"
    yield of_routing, is_dense, "discriminator.routing = dense", "discriminator.routing=grouped"


def _by_alignment(config: RunConfig) -> Iterator[_Rule]:
    align, is_played = config.align, config.align.method == "adversarial"
    method, mode = f"align.method = {align.method}", f"align.mode = {align.mode}"
    of_play = ("align.malformed_penalty", "align.replay_", "align.early_stop", "align.loss.",
               "align.num_minibatches")  # fmt: skip
    samples_groups = is_played or align.method == "best_of_n"
    has_weight = align.mode != "align" or config.rlvr.game != "off"
    yield of_play, not is_played, method, "align.method=adversarial"
    yield "align.group_size", not samples_groups, method, "align.method=adversarial"
    yield "align.dpo_beta", align.method != "dpo", method, "align.method=dpo"
    yield "align.weight", not has_weight, f"{mode} and rlvr.game = off", "align.mode=rlvr"
    yield "align.wrong_penalty", align.mode not in _PENALTY_MODES, mode, "align.mode=gated"
    no_replay = align.replay_fraction == 0
    yield (
        "align.replay_prompts",
        no_replay,
        "align.replay_fraction = 0",
        "align.replay_fraction=0.5",
    )


def _by_rlvr(config: RunConfig) -> Iterator[_Rule]:
    rlvr, rewards = config.rlvr, config.rlvr.rewards
    of_kl, no_kl = ("rlvr.kl_kind", "rlvr.kl_in", "rlvr.kl_reference"), rlvr.kl_weight == 0
    of_sampling, is_fixed = "rlvr.max_sampled_batches", not rlvr.dynamic_sampling
    yield of_kl, no_kl, "rlvr.kl_weight = 0", "rlvr.kl_weight=0.01"
    yield "rlvr.judge.", "judge" not in rewards, "no reward judge", "rlvr.rewards.judge=1"
    for_overlong = "overlong" not in rewards
    yield "rlvr.overlong_buffer", for_overlong, "no reward overlong", "rlvr.rewards.overlong=1"
    yield of_sampling, is_fixed, "rlvr.dynamic_sampling = false", "rlvr.dynamic_sampling=true"
    needs_rewards = rlvr.steps > 0 or alignment_verifies(config)
    yield "rlvr.rewards", not needs_rewards, "rlvr.steps = 0", "rlvr.steps=30"


def _num_ratios(config: RunConfig) -> int:
    """Return how many updates use one batch; a teacher's ratio is not 1 in the first one either."""
    return 2 if config.rlvr.teacher_rollout else config.rlvr.num_minibatches


def _by_loss(stage: str, loss: PolicyLossConfig, num_minibatches: int) -> Iterator[_Rule]:
    section, name = f"{stage}.loss", f"{stage}.loss.name = {loss.name}"
    bounds = {"sapo": ("low", "high", "dual"), "cispo": ("low", "dual")}
    missing = tuple(f"{section}.clip_{side}" for side in bounds.get(loss.name, ()))
    once = f"{stage}.num_minibatches"
    if missing:
        yield missing, True, name, f"{section}.name=dapo"
    yield f"{section}.clip_", num_minibatches == 1, f"{once} = 1", f"{once}=2"
    yield f"{section}.sapo_", loss.name != "sapo", name, f"{section}.name=sapo"
