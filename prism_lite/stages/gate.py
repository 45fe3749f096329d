"""The gate before alignment: does the warmed-up discriminator judge content, and did it learn to?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prism_lite.config.checks import game_begins_in_rlvr
from prism_lite.console import say
from prism_lite.data.probe_rows import FEWEST_PAIRS
from prism_lite.data.split import picture_ids
from prism_lite.discriminator.model import Discriminator
from prism_lite.discriminator.probes import grounding_probe, wilson95
from prism_lite.discriminator.step import CHANNELS
from prism_lite.runs.folder import RunFolder
from prism_lite.runs.retry import retry_command
from prism_lite.stages.context import Context
from prism_lite.types import Sample

_KNOWN = 0.9  # an untrained probe from here on leaves nothing to learn


def check_gate(context: Context, discriminator: Discriminator) -> None:
    """Print per channel whether the discriminator judges content; stop or warn where it does not.

    Every channel that has weight in the advantage (`align.alpha`) must be judged: one that the
    discriminator knew before training says nothing about the other. Controls
    (`discriminator.scores` other than "learned") are not checked.

    Raises:
        ValueError: it does not on such a channel, and `align.gate` is "stop".
    """
    if context.config.discriminator.scores != "learned":
        return
    run, probe = context.run, context.task.probe
    if len(probe) < FEWEST_PAIRS:
        _stop_or_warn(context, no_probe_text(context.task.align))
        return
    grounding = grounding_probe(context.backbone, discriminator, probe)
    untrained = untrained_grounding(run)
    judged, failed = [], {}
    for channel in CHANNELS:
        is_judged, verdict = judge_grounding(
            untrained.get(channel), grounding[f"disc/grounding_{channel}"], len(probe)
        )
        has_weight = _weight_of(channel, context.config.align.alpha) > 0
        say(run.console, f"{channel}: {verdict}{'' if has_weight else ', without weight'}")
        if is_judged:
            judged.append(channel)
        elif has_weight:
            failed[channel] = verdict
    if failed:
        text = _advice(failed, judged, has_begun=game_begins_in_rlvr(context.config))
        _stop_or_warn(context, text)


def _weight_of(channel: str, alpha: float) -> float:
    return alpha if channel == "perception" else 1 - alpha


def _advice(failed: Mapping[str, str], judged: Sequence[str], *, has_begun: bool) -> str:
    """Name the channels without judgement, and the settings that train them longer or do without.

    Args:
        failed: their verdicts.
        judged: the other channels.
        has_begun: alignment, without steps, is finished in this folder: its settings are fixed there.
    """
    verdicts = "; ".join(f"{channel}: {verdict}" for channel, verdict in failed.items())
    text = (
        f"the discriminator does not judge the content of {' and '.join(failed)} ({verdicts}), and "
        "alignment would follow style there. Give another --out with a larger warmup.steps, "
        "warmup.patience or warmup.num_prompts"
    )
    if judged:
        alpha, folder = int("perception" in judged), "another --out and " if has_begun else ""
        text += f"; or rely on {judged[0]} alone: the same command with {folder}align.alpha={alpha}"
    return text


def no_probe_text(rows: Sequence[Sample]) -> str:
    """Say why no pairs could be kept aside (see `keep_pairs_aside`) of rows with a teacher completion."""
    return (
        "no held-out pairs: whether the discriminator judges content cannot be measured on "
        f"{len(rows)} rows with a teacher completion and {len(picture_ids(rows))} different pictures (it "
        "needs at least 20 rows and 8 pictures, none of them in more than an eighth of the rows). Give "
        "rows with more pictures"
    )


def _stop_or_warn(context: Context, message: str) -> None:
    if context.config.align.gate == "stop":
        command = retry_command(context.run, {"align.gate": "warn"}, resumes=True)
        all_the_same = command or "the same settings with align.gate=warn."
        raise ValueError(f"{message}; or begin alignment all the same: {all_the_same}")
    say(context.run.console, f"warning: {message}.", "bold red")


def untrained_grounding(run: RunFolder) -> dict[str, float]:
    """Return the grounding probe of the untrained discriminator, by channel, from the warm-up's metrics."""
    lines = run.metrics("warmup")
    return {
        channel: line[name]
        for line in lines
        for channel in CHANNELS
        if (name := f"disc/grounding_{channel}_untrained") in line
    }


def judge_grounding(untrained: float | None, trained: float, num_pairs: int) -> tuple[bool, str]:
    """Judge one channel of the grounding probe.

    Args:
        untrained: the probe before the warm-up; None where it is not known.
        trained: after it.
        num_pairs: of the probe.

    Returns:
        Whether alignment may rely on the channel, and the verdict. It may where the trained probe is
        above chance (the lower end of Wilson's 95 % interval is above 0.5) and either above the untrained
        one by more than half of the interval, or the untrained one is at least 0.9. A channel that was
        known and no longer is has been lost in training, as where the teacher errs.
    """
    before = "unknown" if untrained is None else f"{untrained:.2f}"
    low, high = wilson95(trained, num_pairs)
    if untrained is not None and low > 0.5:
        if untrained >= _KNOWN:
            return True, f"known before training ({before} untrained -> {trained:.2f})"
        if trained - untrained > (high - low) / 2:
            return True, f"learned ({before} untrained -> {trained:.2f})"
    is_lost = untrained is not None and untrained >= _KNOWN
    return False, f"{'lost' if is_lost else 'not judged'} ({before} untrained -> {trained:.2f})"
