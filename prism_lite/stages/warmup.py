"""Stage 2, discriminator warm-up: teacher completions against samples of the SFT policy.

The policy answers some prompts once; from then on only the discriminator learns. Before: the artefact
probe. After: the grounding probe, which pair accuracy alone does not show.
"""

from __future__ import annotations

from random import Random

from prism_lite.discriminator.model import Discriminator
from prism_lite.discriminator.part_tokens import CUT_WARNING, about_cuts, cut_metrics, read_text
from prism_lite.discriminator.probes import ARTEFACT_WARNING, artefact_auc, grounding_probe
from prism_lite.discriminator.step import Judged, discriminator_step
from prism_lite.models.optim import learning_rate_at, make_optimizer
from prism_lite.parts import Parts
from prism_lite.runs.checkpoint import Trained
from prism_lite.sampling.rollouts import sample_in_pieces
from prism_lite.seeding import batch_at, seed_of
from prism_lite.stages.alarms import Alarms, of_game
from prism_lite.stages.context import Context
from prism_lite.types import Sample

MAX_PROBED_PAIRS = 4000  # more would not change what is reported before the first step
Pair = tuple[Sample, Parts]  # a row with its teacher, and a student's parts


def run_warmup(context: Context) -> None:
    """Train a fresh discriminator on pairs (teacher, SFT sample) of the same prompt."""
    config, backbone, run, task = (
        context.config.warmup,
        context.backbone,
        context.run,
        context.task,
    )
    discriminator = context.new_discriminator()
    context.load_policy("sft")
    optimizer = make_optimizer(
        list(discriminator.parameters()),
        config.optim,
        scales_loss=backbone.precision.scales_loss,
    )
    start = context.resume("warmup", {"discriminator": optimizer}, discriminator)
    pairs = student_pairs(context)
    probe = _report_cuts(context, discriminator, pairs)
    probe["disc/artefact_auc"] = _report_artefacts(context, discriminator, pairs)
    alarms = Alarms(run, "warmup")

    def trained() -> Trained:
        return Trained({"discriminator": discriminator.state_dict()}, {"discriminator": optimizer})

    for step in run.steps("warmup", start, config.steps, trained):
        batch = [
            Judged(backbone.prompt(sample), sample.teacher_parts, (student,))
            for sample, student in batch_at(
                pairs, step, config.pairs_per_step, context.config.seed, "warmup"
            )
        ]
        batch = _with_mismatched(batch, config.mismatched_fraction, context.config.seed, step)
        learning_rate = learning_rate_at(config.optim, step, config.steps)
        scores = discriminator_step(
            backbone,
            discriminator,
            optimizer,
            batch,
            context.config.discriminator,
            learning_rate=learning_rate,
            max_grad_norm=config.optim.max_grad_norm,
        )
        cap = context.config.discriminator.score_cap
        metrics = scores.metrics | alarms.ring(of_game(scores, score_cap=cap), step)
        run.log("warmup", step, metrics | {"learning_rate": learning_rate})
    probe |= grounding_probe(backbone, discriminator, task.probe)
    run.log("warmup", config.steps, probe)
    run.console.print(
        "grounding probe (clean above corrupted): "
        f"perception {probe['disc/grounding_perception']:.2f}, "
        f"reasoning {probe['disc/grounding_reasoning']:.2f}"
        if "disc/grounding_perception" in probe
        else "grounding probe: not measured, too few rows to keep pairs aside"
    )
    run.save_final("warmup", {"discriminator": discriminator.state_dict()})


def student_pairs(context: Context) -> list[Pair]:
    """The recorded pairs, or one SFT sample for each of `warmup.num_prompts` alignment prompts.

    Raises:
        ValueError: a completion of the data is malformed, or the policy gives no well-formed one.
    """
    config, task = context.config, context.task
    if task.warmup:
        context.run.console.print(f"warm-up on {len(task.warmup)} recorded pairs")
        return [(sample, sample.student_parts) for sample in task.warmup]
    samples = task.align[: config.warmup.num_prompts]
    groups = sample_in_pieces(
        context.backbone,
        samples,
        each=context.run.each,
        doing="sampling the SFT policy",
        group_size=1,
        sampling=config.sampling,
        seed=(config.seed, "warmup"),
    )
    pairs = []
    for group in groups:
        rollout = group.rollouts[0]
        if rollout.is_well_formed and isinstance(rollout.parts, Parts):
            pairs.append((group.sample, rollout.parts))
    if len(pairs) < 4:
        raise ValueError(
            f"only {len(pairs)} of {len(samples)} samples of the SFT policy are well-formed: train "
            "SFT longer (sft.steps) before the warm-up."
        )
    return pairs


def _with_mismatched(batch: list[Judged], fraction: float, seed: int, step: int) -> list[Judged]:
    """Matching-aware negatives: some students replaced by the teacher parts of another prompt."""
    rng = Random(seed_of(seed, "warmup", step, "mismatched"))
    result = []
    for i, item in enumerate(batch):
        other = batch[(i + 1 + rng.randrange(max(1, len(batch) - 1))) % len(batch)].teacher
        mismatched = rng.random() < fraction and other != item.teacher
        result.append(Judged(item.prompt, item.teacher, (other,)) if mismatched else item)
    return result


def _report_cuts(
    context: Context, discriminator: Discriminator, pairs: list[Pair]
) -> dict[str, float]:
    """Share of each side's parts that the discriminator reads without their end."""
    backbone, limit = context.backbone, context.config.discriminator.max_part_tokens
    judged = pairs[:MAX_PROBED_PAIRS]
    teacher = discriminator.part_lengths(backbone, (sample.teacher_parts for sample, _ in judged))
    student = discriminator.part_lengths(backbone, (student for _, student in judged))
    share, sentence = about_cuts(teacher, student, limit)
    warning = share > CUT_WARNING
    context.run.console.print(f"[yellow]warning: {sentence}[/]" if warning else sentence)
    return cut_metrics(teacher, student, limit)


def _report_artefacts(context: Context, discriminator: Discriminator, pairs: list[Pair]) -> float:
    def read(parts: Parts) -> str:
        tokens = discriminator.part_tokens(context.backbone, parts)
        return read_text(context.backbone, parts, tokens)

    judged = pairs[:MAX_PROBED_PAIRS]
    auc = artefact_auc(
        [read(sample.teacher_parts) for sample, _ in judged],
        [read(student) for _, student in judged],
    )
    context.run.console.print(f"artefact probe (0.5: form gives nothing away): AUC {auc:.2f}")
    if auc > ARTEFACT_WARNING:
        context.run.console.print(
            f"[yellow]warning: length and white space alone tell teacher from student (AUC {auc:.2f} "
            f"> {ARTEFACT_WARNING}); the discriminator may win without looking at content[/]"
        )
    return auc
