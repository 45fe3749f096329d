"""Stage 2, discriminator warm-up: teacher completions against samples of the SFT policy.

The policy answers some prompts once; after that only the discriminator is trained. Before training the
artefact probe is printed, after it the grounding probe, which pair accuracy alone does not show.
"""

from __future__ import annotations

from random import Random

from prism_lite.discriminator.model import Discriminator
from prism_lite.discriminator.part_tokens import CUT_WARNING, about_cuts, cut_metrics, read_text
from prism_lite.discriminator.probes import ARTEFACT_WARNING, artefact_auc, grounding_probe
from prism_lite.discriminator.step import JudgedPrompt, discriminator_step
from prism_lite.models.optim import learning_rate_at
from prism_lite.parts import Parts
from prism_lite.sampling.rollouts import sample_in_pieces
from prism_lite.seeding import batch_at, seed_of
from prism_lite.stages.context import Context
from prism_lite.stages.guards import Alarms, game_alarms
from prism_lite.types import Sample

_MAX_PROBED_PAIRS = 4000  # more would not change what is reported before the first step
Pair = tuple[Sample, Parts]  # a row with its teacher, and a student's parts


def run_warmup(context: Context) -> None:
    """Train a fresh discriminator on pairs (teacher, SFT sample) of the same prompt."""
    config, backbone, run = context.config.warmup, context.backbone, context.run
    seed, disc_config = context.config.seed, context.config.discriminator
    discriminator = context.new_discriminator()
    context.load_policy("sft")
    optimizer = context.optimizer(config.optim, discriminator)
    pairs = _student_pairs(context)
    probe = _report_cuts(context, discriminator, pairs)
    probe["disc/artefact_auc"] = _report_artefacts(context, discriminator, pairs)
    alarms = Alarms(run, "warmup")
    optimizers = {"discriminator": optimizer}
    for step in context.steps("warmup", config.steps, optimizers, discriminator=discriminator):
        batch = [
            JudgedPrompt(backbone.prompt(sample), sample.teacher_parts, (student,))
            for sample, student in batch_at(pairs, step, config.pairs_per_step, seed, "warmup")
        ]
        learning_rate = learning_rate_at(config.optim, step, config.steps)
        scores = discriminator_step(
            backbone,
            discriminator,
            optimizer,
            _with_mismatched(batch, config.mismatched_fraction, seed, step),
            disc_config,
            learning_rate=learning_rate,
            max_grad_norm=config.optim.max_grad_norm,
        )
        alarm_metrics = alarms.report(game_alarms(scores, score_cap=disc_config.score_cap), step)
        run.log("warmup", step, scores.metrics | alarm_metrics | {"learning_rate": learning_rate})
    probe |= grounding_probe(backbone, discriminator, context.task.probe)
    run.log("warmup", config.steps, probe)
    run.console.print(
        "grounding probe (clean above corrupted): "
        f"perception {probe['disc/grounding_perception']:.2f}, "
        f"reasoning {probe['disc/grounding_reasoning']:.2f}"
        if "disc/grounding_perception" in probe
        else "grounding probe: not measured, too few rows to keep pairs aside"
    )
    run.save_final("warmup", {"discriminator": discriminator.state_dict()})


def _student_pairs(context: Context) -> list[Pair]:
    """Return the recorded pairs, or sample the SFT policy on `warmup.num_prompts` alignment prompts.

    Raises:
        ValueError: a completion of the data is malformed, or too few samples are well-formed.
    """
    config, task = context.config, context.task
    if task.warmup:
        context.run.console.print(f"warm-up on {len(task.warmup)} recorded pairs")
        return [(sample, sample.student_parts) for sample in task.warmup]
    samples = task.align[: config.warmup.num_prompts]
    groups = sample_in_pieces(
        context.backbone,
        samples,
        with_progress=context.run.with_progress,
        description="sampling the SFT policy",
        group_size=1,
        sampling=config.sampling,
        seed=(config.seed, "warmup"),
    )
    pairs = [(group.sample, student) for group in groups for student in group.students]
    if len(pairs) < 4:
        raise ValueError(
            f"only {len(pairs)} of {len(samples)} samples of the SFT policy are well-formed: train "
            "SFT longer (sft.steps) before the warm-up."
        )
    return pairs


def _with_mismatched(
    batch: list[JudgedPrompt], fraction: float, seed: int, step: int
) -> list[JudgedPrompt]:
    """Replace some students by the teacher parts of another prompt (matching-aware negatives)."""
    rng = Random(seed_of(seed, "warmup", step, "mismatched"))
    result = []
    for i, item in enumerate(batch):
        other = batch[(i + 1 + rng.randrange(max(1, len(batch) - 1))) % len(batch)].teacher
        mismatched = rng.random() < fraction and other != item.teacher
        result.append(JudgedPrompt(item.prompt, item.teacher, (other,)) if mismatched else item)
    return result


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
    context.run.console.print(f"[yellow]warning: {sentence}[/]" if is_warning else sentence)
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
    console.print(f"artefact probe (0.5: the form reveals nothing): AUC {auc:.2f}")
    if auc > ARTEFACT_WARNING:
        console.print(
            f"[yellow]warning: length and white space alone tell teacher from student (AUC {auc:.2f} "
            f"> {ARTEFACT_WARNING}); the discriminator may win without looking at content[/]"
        )
    return auc
