"""Stage 2, discriminator warm-up: teacher completions against samples of the SFT policy.

The policy answers some prompts once; after that only the discriminator is trained, until it no longer
improves on prompts that are kept out. The artefact probe is printed before training, the grounding probe
before and after: pair accuracy alone does not show what is judged, and an untrained discriminator already
has the trunk's likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from rich.table import Table

from prism_lite.console import say
from prism_lite.discriminator.model import Discriminator
from prism_lite.discriminator.negatives import (
    Corrupt,
    StudentGroup,
    add_negatives,
    corrupt_numbers,
)
from prism_lite.discriminator.part_tokens import CUT_WARNING, about_cuts, cut_metrics, read_text
from prism_lite.discriminator.probes import (
    ARTEFACT_WARNING,
    artefact_auc,
    grounding_probe,
    heldout_pairs,
    wilson95,
)
from prism_lite.discriminator.step import CHANNELS, JudgedPrompt, discriminator_step
from prism_lite.models.optim import learning_rate_at
from prism_lite.parts import Parts
from prism_lite.seeding import batch_at, seed_of
from prism_lite.stages.alarms.discriminator import game_alarms
from prism_lite.stages.alarms.stage import Alarms
from prism_lite.stages.context import Context
from prism_lite.stages.student_groups import num_students, split_groups, student_groups
from prism_lite.types import Sample

_MAX_PROBED_PAIRS = 4000  # more would not change what is reported before the first step
_WEAK_START = 0.1  # of the likelihood's weights, where likelihood does not tell the teacher
Pair = tuple[Sample, Parts]  # a row with its teacher, and a student's parts


def run_warmup(context: Context) -> None:
    """Train a fresh discriminator on groups of the teacher and SFT samples of the same prompt."""
    config, backbone, run = context.config.warmup, context.backbone, context.run
    seed, disc_config = context.config.seed, context.config.discriminator
    discriminator = context.new_discriminator()
    if disc_config.scores != "learned":  # a frozen one stays untrained, the oracle reads none
        run.save_final("warmup", {"discriminator": discriminator.state_dict()})
        return
    context.load_policy("sft")
    optimizer = context.optimizer(config.optim, discriminator)
    groups = student_groups(context)
    trained_on, heldout = split_groups(groups)
    figures = _report_texts(context, discriminator, groups)
    untrained = grounding_probe(backbone, discriminator, context.task.probe)
    figures |= {_untrained_name(name): value for name, value in untrained.items()}
    judged_heldout = _judged(context, heldout)
    figures |= _choose_head_start(context, discriminator, judged_heldout)
    corrupt = context.task.corrupt or corrupt_numbers
    if config.corrupted_fraction > 0:
        _report_corruptible(context, trained_on, corrupt)
    alarms, early_stop = Alarms(run, "warmup"), EarlyStop(config.patience)
    num_groups = _groups_per_step(context, trained_on)
    num_steps = config.steps
    optimizers = {"discriminator": optimizer}
    for step in context.steps(
        "warmup",
        config.steps,
        optimizers,
        discriminator=discriminator,
        buffers={"early_stop": early_stop},
    ):
        batch, corrupted = add_negatives(
            batch_at(trained_on, step, num_groups, seed, "warmup"),
            Random(seed_of(seed, "warmup", step, "negatives")),
            mismatched_fraction=config.mismatched_fraction,
            corrupted_fraction=config.corrupted_fraction,
            corrupt=corrupt,
            splits_parts=disc_config.reasoning_sees_caption,
        )
        run.batch = [group.sample for group in batch]
        learning_rate = learning_rate_at(config.optim, step, config.steps)
        scores = discriminator_step(
            backbone,
            discriminator,
            optimizer,
            _judged(context, batch),
            disc_config,
            learning_rate=learning_rate,
            max_grad_norm=config.optim.max_grad_norm,
        )
        metrics = scores.metrics | {"learning_rate": learning_rate, "disc/corrupted": corrupted}
        metrics |= alarms.report(game_alarms(scores, score_cap=disc_config.score_cap), step)
        is_over = False
        if heldout and (step + 1) % config.check_every == 0:
            result = heldout_pairs(backbone, discriminator, judged_heldout)
            metrics |= result.metrics()
            loss = result.mean_loss()
            metrics |= {} if loss is None else {"disc/heldout_loss": loss}
            is_over = early_stop.is_over(loss)
        run.log("warmup", step, metrics)
        if is_over:
            num_steps = step + 1
            say(
                run.console,
                f"warm-up ends after {num_steps} of {config.steps} steps: the loss on {len(heldout)} "
                f"held-out prompts has not improved for {config.patience} checks",
            )
            run.ends_stage = True
    trained = grounding_probe(backbone, discriminator, context.task.probe)
    run.log("warmup", num_steps, figures | trained)
    if trained:
        run.console.print(_probe_table(untrained, trained))
    else:
        say(run.console, "grounding probe: not measured, too few rows to keep pairs aside")
    run.save_final("warmup", {"discriminator": discriminator.state_dict()})


class EarlyStop:
    """The lowest held-out loss, and how many checks have passed since; in the checkpoints."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._lowest: float | None = None
        self._num_since = 0

    def is_over(self, loss: float | None) -> bool:
        """Note the loss of a check (None: not measured); return whether training has to end."""
        if loss is None or not math.isfinite(loss):
            return False
        if self._lowest is None or loss < self._lowest:
            self._lowest, self._num_since = loss, 0
        else:
            self._num_since += 1
        return 0 < self._patience <= self._num_since

    def state(self) -> list[float | None]:
        """Return JSON-able content."""
        return [self._lowest, self._num_since]

    def load(self, state: Sequence[float | None]) -> None:
        """Restore what `state` returned."""
        self._lowest, self._num_since = state[0], int(state[1] or 0)


def _groups_per_step(context: Context, groups: Sequence[StudentGroup]) -> int:
    """Return how many prompts make `warmup.pairs_per_step` pairs; recorded groups differ in size."""
    config = context.config.warmup
    if not context.task.warmup:
        return config.pairs_per_step // config.group_size
    return max(1, round(config.pairs_per_step * len(groups) / num_students(groups)))


def _report_texts(
    context: Context, discriminator: Discriminator, groups: Sequence[StudentGroup]
) -> dict[str, float]:
    """Print and return what the form of the texts reveals: parts that are cut, the artefact probe."""
    pairs = [(group.sample, student) for group in groups for student in group.students]
    figures = _report_cuts(context, discriminator, pairs)
    # one student of each prompt: the probe is fitted on every second pair and judged on the others
    firsts = [(group.sample, group.students[0]) for group in groups]
    return figures | {"disc/artefact_auc": _report_artefacts(context, discriminator, firsts)}


def _judged(context: Context, groups: Sequence[StudentGroup]) -> list[JudgedPrompt]:
    prompt = context.backbone.prompt
    return [JudgedPrompt(prompt(g.sample), g.sample.teacher_parts, g.students) for g in groups]


def _choose_head_start(
    context: Context, discriminator: Discriminator, heldout: Sequence[JudgedPrompt]
) -> dict[str, float]:
    """Weaken the heads' likelihood weights where likelihood does not tell teacher from student.

    It is measured on held-out pairs, per channel: only if the untrained discriminator is clearly above
    chance (Wilson's interval) are its weights a good start.

    Returns:
        `disc/heldout_pair_accuracy_CHANNEL_untrained`, where it was measured, and
        `disc/head_start_CHANNEL`, the factor of the weights.
    """
    if not discriminator.config.likelihood_features:
        return {}
    metrics, factors, texts = {}, [], []
    result = heldout_pairs(context.backbone, discriminator, heldout) if heldout else None
    for channel, name in enumerate(CHANNELS):
        accuracy = result.accuracy[channel] if result else None
        is_judge = (
            result is not None
            and accuracy is not None
            and wilson95(accuracy, result.num_prompts[channel])[0] > 0.5
        )
        factors.append(1.0 if is_judge else _WEAK_START)
        metrics[f"disc/head_start_{name}"] = factors[-1]
        measured = "not measured" if accuracy is None else f"{accuracy:.2f}"
        if accuracy is not None:
            metrics[f"disc/heldout_pair_accuracy_{name}_untrained"] = accuracy
        texts.append(f"{name} {measured} ({'full' if is_judge else 'a tenth of the'} weight)")
    discriminator.weaken_likelihood((factors[0], factors[1]))
    say(
        context.run.console,
        f"held-out pairs that the untrained likelihood wins, and its weight at the start: "
        f"{', '.join(texts)}",
    )
    return metrics


def _untrained_name(name: str) -> str:
    """Return `disc/grounding_CHANNEL_untrained...` for a metric of the grounding probe."""
    for channel in CHANNELS:
        name = name.replace(channel, f"{channel}_untrained")
    return name


def _probe_table(untrained: dict[str, float], trained: dict[str, float]) -> Table:
    """Return both grounding probes, by the score and by parts of its head, as a table."""
    table = Table(title="grounding probe: clean parts above corrupted ones")
    suffixes = {"": "score", "_likelihood": "likelihood alone", "_without_likelihood": "without it"}
    shown = [suffix for suffix in suffixes if f"disc/grounding_perception{suffix}" in trained]
    for title in ("", *(suffixes[suffix] for suffix in shown)):
        table.add_column(title)
    for channel in CHANNELS:
        for when, probe in (("untrained", untrained), ("trained", trained)):
            cells = (f"{probe[f'disc/grounding_{channel}{suffix}']:.2f}" for suffix in shown)
            table.add_row(f"{channel}, {when}", *cells)
    return table


def _report_corruptible(context: Context, groups: Sequence[StudentGroup], corrupt: Corrupt) -> None:
    """Print how many teacher texts have nothing to corrupt, if any: their students are not replaced."""
    samples = [group.sample for group in groups]
    rng = Random(seed_of(context.config.seed, "warmup", "corruptible"))
    num_without = sum(corrupt(sample, sample.teacher_parts, rng) is None for sample in samples)
    if num_without:
        say(
            context.run.console,
            f"corrupted negatives: {num_without} of {len(samples)} teacher texts have nothing to corrupt",
        )


def _report_cuts(
    context: Context, discriminator: Discriminator, pairs: list[Pair]
) -> dict[str, float]:
    """Print and return the share of each side's parts that the discriminator reads truncated."""
    backbone, limit = context.backbone, context.config.discriminator.max_part_tokens
    probed = pairs[:_MAX_PROBED_PAIRS]
    teacher = discriminator.part_lengths(backbone, (sample.teacher_parts for sample, _ in probed))
    student = discriminator.part_lengths(backbone, (student for _, student in probed))
    share, sentence = about_cuts(teacher, student, limit)
    is_warning = share > CUT_WARNING
    if is_warning:
        sentence = f"warning: {sentence}"
    say(context.run.console, sentence, "yellow" if is_warning else "")
    return cut_metrics(teacher, student, limit)


def _report_artefacts(context: Context, discriminator: Discriminator, pairs: list[Pair]) -> float:
    """Print and return the AUC of a classifier that sees only length and white space."""

    def text_of(parts: Parts) -> str:
        tokens = discriminator.part_tokens(context.backbone, parts)
        return read_text(context.backbone, parts, tokens)

    probed = pairs[:_MAX_PROBED_PAIRS]
    auc = artefact_auc(
        [text_of(sample.teacher_parts) for sample, _ in probed],
        [text_of(student) for _, student in probed],
    )
    console = context.run.console
    say(console, f"artefact probe (0.5: the form reveals nothing): AUC {auc:.2f}")
    if auc > ARTEFACT_WARNING:
        say(
            console,
            f"warning: length and white space alone tell teacher from student (AUC {auc:.2f} "
            f"> {ARTEFACT_WARNING}); the discriminator may win without looking at content",
            "yellow",
        )
    return auc
