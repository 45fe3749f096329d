"""The gate before alignment: does the warmed-up discriminator judge content, and did it learn to?"""

from __future__ import annotations

from prism_lite.console import say
from prism_lite.discriminator.model import Discriminator
from prism_lite.discriminator.probes import grounding_probe, wilson95
from prism_lite.discriminator.step import CHANNELS
from prism_lite.runs.folder import RunFolder
from prism_lite.runs.retry import repeat_with, retry_command
from prism_lite.stages.context import Context

_KNOWN = 0.9  # an untrained probe from here on leaves nothing to learn


def check_gate(context: Context, discriminator: Discriminator) -> None:
    """Print per channel whether the discriminator judges content; stop or warn if it does on neither.

    Controls (`discriminator.scores` other than "learned") are not checked.

    Raises:
        ValueError: it does on neither channel, and `align.gate` is "stop".
    """
    if context.config.discriminator.scores != "learned":
        return
    run, probe = context.run, context.task.probe
    grounding = grounding_probe(context.backbone, discriminator, probe)
    if not grounding:
        _stop_or_warn(context, NO_PROBE)
        return
    untrained = untrained_grounding(run)
    lines, passes = [], False
    for channel in CHANNELS:
        is_open, verdict = judge_grounding(
            untrained.get(channel), grounding[f"disc/grounding_{channel}"], len(probe)
        )
        passes = passes or is_open
        lines.append(f"{channel}: {verdict}")
        say(run.console, lines[-1])
    if not passes:
        _stop_or_warn(
            context,
            f"the discriminator does not judge content on either channel ({'; '.join(lines)}), and "
            "alignment would follow style. Repeat with a larger warmup.patience, warmup.num_prompts or "
            f"warmup.steps{repeat_with(run, {'warmup.steps': '*2'}).removesuffix('.')}",
        )


NO_PROBE = (
    "no held-out pairs: whether the discriminator judges content cannot be measured (it needs at least "
    "20 rows with a teacher completion, with different pictures). Give more rows"
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
        one by more than half of the interval, or the untrained one is at least 0.9.
    """
    before = "unknown" if untrained is None else f"{untrained:.2f}"
    low, high = wilson95(trained, num_pairs)
    if untrained is not None and low > 0.5:
        if untrained >= _KNOWN:
            return True, f"known before training ({before} untrained -> {trained:.2f})"
        if trained - untrained > (high - low) / 2:
            return True, f"learned ({before} untrained -> {trained:.2f})"
    return False, f"not judged ({before} untrained -> {trained:.2f})"
