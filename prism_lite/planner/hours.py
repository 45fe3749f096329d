"""Hours of a recipe on a card: predicted from the simulated operations.

A step takes the larger of two times. The host's: operations that it issues x `Card.host_us`. The card's:
arithmetic or memory traffic of each operation at sustained speeds (cards.py), and `Card.kernel_us` each.
Where a token's step is recorded as a CUDA graph the host issues one operation, and kernels follow one
another in `GRAPH_SHARE` of that time. Nothing waits for the card between two checks for finished rows; the
checks (one in 32 tokens) and the copies of a step's results cost less than a hundredth and are left out.

Lengths are assumed: prompts, completions and parts are half as long as they may be on average, and of the
rows decoded side by side one reaches the limit. Finished rows are dropped, so that fewer keys are read; the
rest of a token is counted for all rows. All warm-up steps are counted, though it may end early. Not
counted: loading, tokenising, checkpoints, plots.

Host cost: 59 ms were measured for 28 layers x 79 operations (27 us each) on a slow shared core; 16 us for
servers and Colab and 9 us for desktops are estimates from it by clock. A figure may be wrong by 40 %.
`prism-lite plan --measured FILE` scales each stage by what `gpu-check` has measured on the card.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from prism_lite.config import RunConfig
from prism_lite.planner.cards import Card
from prism_lite.planner.simulate_phase import Simulated
from prism_lite.planner.workload import Phase
from prism_lite.types import STAGES, Stage

MEAN_SHARE = 0.5  # mean length of a prompt or completion, as a share of its limit
# Own tokens that a token reads on average, as a share of rows x longest completion: a sixth if lengths are
# spread evenly and every finished row is dropped at once; they are when they are an eighth of the rows.
OWN_SHARE = 0.2
GRAPH_SHARE = 0.4  # of the time between two kernels that a CUDA graph leaves
SESSION_HOURS = 12.0  # of Colab
_START_HOURS = 0.25  # of a session, until the first step: installation, download, loading
_NO_GRADIENT = 1 / 3  # of a discriminator's update: forward and backward
_OF_CHECKPOINTED = 1 / 4  # of a policy's update: forward, forward again and backward
_PANEL_PARTS = 5  # teacher, student; clean, with another caption, corrupted
_DRIFT_PROMPTS = 64  # of which the drift meter computes the KL
_ASSUMED_HELDOUT = 200  # prompts, where all rows of a file are evaluated

Phases = Mapping[Phase, Simulated]


@dataclass(frozen=True)
class Hours:
    """Predicted time of a recipe.

    Attributes:
        stages: hours of each stage's steps, panels in them.
        step_s: seconds of a step of each stage, without panels.
        panels: hours of the convergence panels.
        evaluation: hours of the evaluations after the stages, and inside them.
        decoding: how tokens are sampled, in words.
        measured_on: name of the card whose measurements calibrate the hours; empty without any.
    """

    stages: dict[Stage, float]
    step_s: dict[Stage, float]
    panels: float
    evaluation: float
    decoding: str
    measured_on: str = ""

    @property
    def total(self) -> float:
        return sum(self.stages.values()) + self.evaluation

    @property
    def num_sessions(self) -> int:
        """Sessions of Colab that hold the run, resumed in each but the first."""
        return math.ceil(self.total / (SESSION_HOURS - _START_HOURS))


def predict_hours(
    config: RunConfig, card: Card, phases: Phases, record: Mapping[str, Any] | None = None
) -> Hours:
    """Predict the hours of a recipe from all its phases.

    Args:
        record: of `gpu-check`; its stages that have a `predicted_s` beside `step_s` calibrate.

    Raises:
        ValueError: the record is of a card with other memory.
    """
    factor = calibration(card, record)
    step_s: dict[Stage, float] = {
        stage: _step_seconds(config, card, phases, stage) for stage in STAGES
    }
    num_steps = _num_steps(config)
    seconds = {stage: num_steps[stage] * step_s[stage] for stage in STAGES}
    if num_steps["warmup"]:
        num_rows = config.warmup.num_prompts * config.warmup.group_size
        seconds["warmup"] += _sampling_seconds(
            config, card, phases[Phase("warmup", "sample")], num_rows
        )
    panels_s = dict.fromkeys(STAGES, 0.0)
    for stage in ("align", "rlvr"):
        if _has_game(config, stage):
            num_panels = len(range(0, num_steps[stage], config.align.panel_every)) + 1
            panels_s[stage] = num_panels * _panel_seconds(config, card, phases)
    return Hours(
        stages={s: factor[s] * (seconds[s] + panels_s[s]) / 3600 for s in STAGES},
        step_s={s: factor[s] * step_s[s] for s in STAGES},
        panels=sum(factor[s] * panels_s[s] for s in STAGES) / 3600,
        evaluation=factor["rlvr"] * _evaluation_seconds(config, card, phases) / 3600,
        decoding=_decoding(config, phases),
        measured_on="" if record is None else record["card"],
    )


def calibration(card: Card, record: Mapping[str, Any] | None) -> dict[Stage, float]:
    """Return measured by predicted seconds of each stage: 1 without measurements.

    A stage that was not measured has the median of the others.
    """
    if record is None:
        return dict.fromkeys(STAGES, 1.0)
    if not 0.9 * card.gib <= record["gib"] <= 1.15 * card.gib:
        raise ValueError(
            f"--measured: the record is of {record['card']} ({record['gib']:g} GiB), the plan is for "
            f"{card.gib:g} GiB. Give --card, or the record of this card."
        )
    ratios: dict[Stage, list[float]] = {stage: [] for stage in STAGES}
    for figures_of in record["stages"].values():
        for stage in STAGES:
            figures = figures_of.get(stage, {})
            if "step_s" in figures and "predicted_s" in figures:
                ratios[stage].append(figures["step_s"] / figures["predicted_s"])
    measured = [ratio for of_stage in ratios.values() for ratio in of_stage]
    if not measured:
        raise ValueError(
            "--measured: no stage of the record has both step_s and predicted_s: run gpu-check again."
        )
    return {stage: median(ratios[stage] or measured) for stage in STAGES}


def phase_seconds(
    config: RunConfig, card: Card, simulated: Simulated, *, num_tokens: int = 0
) -> float:
    """Return the time of the phase as it is simulated: one pack or one batch of rows, at full length.

    Tokens are decoded without a CUDA graph. (`gpu-check` runs and measures phases so.)

    Args:
        num_tokens: of each completion, where the phase samples.
    """
    seconds = _pack_seconds(card, simulated, 1.0, 1)
    if simulated.token_cost is None:
        return seconds
    num_prompts = simulated.num_rows / min(_group_size(config, simulated.phase), simulated.num_rows)
    num_read = simulated.num_rows * num_tokens / 2 + num_prompts * simulated.prompt_tokens
    return seconds + num_tokens * _token_seconds(card, simulated, num_read, is_recorded=False)


def token_seconds(config: RunConfig, card: Card, sampled: Simulated, group_size: int) -> float:
    """Return the mean time of one token of all rows."""
    num_prompts = sampled.num_rows / group_size
    num_read = OWN_SHARE * sampled.num_rows * config.sampling.max_completion_tokens
    num_read += num_prompts * MEAN_SHARE * sampled.prompt_tokens
    return _token_seconds(card, sampled, num_read, is_recorded=_is_recorded(config))


def _token_seconds(card: Card, sampled: Simulated, num_read: float, *, is_recorded: bool) -> float:
    """Return the time of one token of all rows that reads the keys of `num_read` tokens."""
    assert sampled.token_cost is not None
    keys_s = num_read * sampled.key_bytes / (card.gb_per_s * 1e9)
    cost = sampled.token_cost
    busy_s, kernels_s = cost.busy_s + keys_s, cost.num_launches * card.kernel_us * 1e-6
    if is_recorded:
        return busy_s + GRAPH_SHARE * kernels_s
    return max(cost.num_launches * card.host_us * 1e-6, busy_s + kernels_s)


def _is_recorded(config: RunConfig) -> bool:
    return config.sampling.cuda_graph == "auto" and not config.model.embeddings_on_cpu


def _decoding(config: RunConfig, phases: Phases) -> str:
    is_dense = all(s.is_dense for s in phases.values() if s.token_cost is not None)
    weights = "dense, merged weights" if is_dense else "4-bit weights where dense ones do not fit"
    return f"{weights}, {'a CUDA graph' if _is_recorded(config) else 'no CUDA graph'}"


def _group_size(config: RunConfig, phase: Phase) -> int:
    if phase.work == "panel":
        return 1
    if phase.work == "evaluate":
        return config.eval.num_samples
    return getattr(config, phase.stage).group_size


def _sampling_seconds(config: RunConfig, card: Card, sampled: Simulated, num_rows: int) -> float:
    """Return the time of so many completions, decoded in batches of the simulated rows."""
    num_batches = math.ceil(num_rows / sampled.num_rows)
    group_size = min(_group_size(config, sampled.phase), sampled.num_rows)
    tokens_s = config.sampling.max_completion_tokens * token_seconds(
        config, card, sampled, group_size
    )
    return num_batches * (_pack_seconds(card, sampled, 1.0, 1) + tokens_s)


def _pack_seconds(card: Card, simulated: Simulated, share: float, num_packs: int) -> float:
    """Return the time of `share` of the simulated pack's arithmetic, issued as so many packs."""
    cost = simulated.cost
    num_launches = num_packs * cost.num_launches
    card_s = share * cost.busy_s + num_launches * card.kernel_us * 1e-6
    return max(num_launches * card.host_us * 1e-6, card_s)


def _update_seconds(config: RunConfig, card: Card, simulated: Simulated) -> float:
    """Return the time of one step's packs, of completions of mean length."""
    num_tokens = MEAN_SHARE * simulated.step_tokens
    num_packs = math.ceil(num_tokens / config.model.max_pack_tokens)
    return _pack_seconds(card, simulated, num_tokens / simulated.pack_tokens, num_packs)


def _step_seconds(config: RunConfig, card: Card, phases: Phases, stage: Stage) -> float:
    """Return the time of a step: sampling (not of the warm-up), discriminator, policy."""
    seconds = 0.0
    for phase, simulated in phases.items():
        if phase.stage != stage or (phase.work == "judge" and not _has_game(config, stage)):
            continue
        if phase.work in ("judge", "train"):
            seconds += _update_seconds(config, card, simulated)
        elif phase.work == "sample" and stage != "warmup" and _samples(config, stage):
            settings = getattr(config, stage)
            num_rows = settings.prompts_per_step * settings.group_size
            seconds += _sampling_seconds(config, card, simulated, num_rows)
    return seconds


def _has_game(config: RunConfig, stage: Stage) -> bool:
    """Whether a stage has the discriminator."""
    if stage == "rlvr":
        return config.rlvr.game != "off"
    return config.align.method == "adversarial" and stage in ("warmup", "align")


def _samples(config: RunConfig, stage: Stage) -> bool:
    return stage == "rlvr" or config.align.method in ("adversarial", "best_of_n")


def _num_steps(config: RunConfig) -> dict[Stage, int]:
    has_warmup = _has_game(config, "warmup") and config.discriminator.scores == "learned"
    control = config.align.steps + config.rlvr.steps if config.rlvr.control else 0
    return {
        "sft": config.sft.steps,
        "warmup": config.warmup.steps if has_warmup else 0,
        "align": config.align.steps,
        "rlvr": config.rlvr.steps + control,
    }


def _panel_seconds(config: RunConfig, card: Card, phases: Phases) -> float:
    """Return the time of one panel: an answer to each probe prompt, and the parts that are scored."""
    judged, align = phases[Phase("align", "judge")], config.align
    num_pairs = min(align.panel_pairs, config.warmup.num_probe)
    num_parts = align.prompts_per_step * (1 + align.group_size)  # of a step's update
    scored_s = _update_seconds(config, card, judged) * _PANEL_PARTS * num_pairs / num_parts
    sampled_s = _sampling_seconds(config, card, phases[Phase("align", "panel")], num_pairs)
    return sampled_s + _NO_GRADIENT * scored_s


def _evaluation_seconds(config: RunConfig, card: Card, phases: Phases) -> float:
    """Return the time of all evaluations: sampled and greedy completions, and the KL to the start."""
    sampled, trained = phases[Phase("rlvr", "evaluate")], phases[Phase("rlvr", "train")]
    settings, num_steps = config.eval, _num_steps(config)
    heldout = config.data.num_heldout if config.data.task == "digits" else _ASSUMED_HELDOUT
    num_prompts = settings.num_prompts or heldout
    rows = (num_prompts * settings.num_samples, num_prompts)
    seconds = sum(_sampling_seconds(config, card, sampled, num_rows) for num_rows in rows)
    num_tokens = (
        sampled.prompt_tokens + settings.num_samples * config.sampling.max_completion_tokens
    )
    num_tokens *= MEAN_SHARE * min(_DRIFT_PROMPTS, num_prompts)
    share = _OF_CHECKPOINTED * num_tokens / trained.pack_tokens
    num_packs = math.ceil(num_tokens / config.model.max_pack_tokens)
    seconds += _pack_seconds(card, trained, share, num_packs)
    stages = [s for s in settings.stages if s != "control" or config.rlvr.control]
    total = len(stages) * seconds
    if settings.every:
        num_inside = sum(num_steps[s] // settings.every + 1 for s in ("sft", "align", "rlvr"))
        num_rows = settings.num_inside * settings.num_samples
        total += num_inside * _sampling_seconds(config, card, sampled, num_rows)
    return total
