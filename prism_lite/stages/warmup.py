"""Stage 2, discriminator warm-up: teacher completions against samples of the SFT policy.

The policy answers some prompts once; from then on only the discriminator learns. Before: the artefact
probe. After: the grounding probe, which pair accuracy alone does not show.
"""

from __future__ import annotations

import time
from random import Random

from prism_lite import parts
from prism_lite.checkpoint import Trained
from prism_lite.game import Judged, discriminator_step
from prism_lite.optim import learning_rate_at, make_optimizer
from prism_lite.parts import Parts
from prism_lite.probes import ARTEFACT_WARNING, artefact_auc, grounding_probe
from prism_lite.rollouts import sample_groups
from prism_lite.run_folder import peak_gib
from prism_lite.seeding import batch_at, seed_of
from prism_lite.stages.context import Context


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
    probe = {"disc/artefact_auc": _report_artefacts(context, pairs)}

    def trained() -> Trained:
        return Trained({"discriminator": discriminator.state_dict()}, {"discriminator": optimizer})

    for step in run.steps("warmup", start, config.steps, trained):
        started_s = time.perf_counter()
        batch = batch_at(pairs, step, config.pairs_per_step, context.config.seed, "warmup")
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
        times = {"step_time": time.perf_counter() - started_s, "mem/peak_gib": peak_gib()}
        run.log("warmup", step, scores.metrics | {"learning_rate": learning_rate} | times)
    probe |= grounding_probe(backbone, discriminator, task.probe, task.system_prompt)
    run.log("warmup", config.steps, probe)
    run.console.print(
        "grounding probe (clean above corrupted): "
        f"perception {probe['disc/grounding_perception']:.2f}, "
        f"reasoning {probe['disc/grounding_reasoning']:.2f}"
        if "disc/grounding_perception" in probe
        else "grounding probe: not measured, too few rows to keep pairs aside"
    )
    run.save_final("warmup", {"discriminator": discriminator.state_dict()})


def student_pairs(context: Context) -> list[Judged]:
    """One SFT sample for each of `warmup.num_prompts` alignment prompts, beside the teacher's.

    Raises:
        ValueError: a teacher completion is malformed, or the policy gives no well-formed completion.
    """
    config, task = context.config, context.task
    samples = task.align[: config.warmup.num_prompts]
    groups = sample_groups(
        context.backbone,
        samples,
        group_size=1,
        sampling=config.sampling,
        system_prompt=task.system_prompt,
        seed=(config.seed, "warmup"),
    )
    pairs = []
    for group in groups:
        rollout = group.rollouts[0]
        if rollout.is_well_formed and isinstance(rollout.parts, Parts):
            prompt = context.backbone.prompt(group.sample, task.system_prompt)
            pairs.append(Judged(prompt, teacher_parts(group.sample), (rollout.parts,)))
    if len(pairs) < 4:
        raise ValueError(
            f"only {len(pairs)} of {len(samples)} samples of the SFT policy are well-formed: train "
            "SFT longer (sft.steps) before the warm-up."
        )
    return pairs


def teacher_parts(sample) -> Parts:
    """The teacher's parts of a row.

    Raises:
        ValueError: there is no teacher completion, or it is malformed; names the row.
    """
    found = parts.parse(sample.teacher or "")
    if isinstance(found, Parts):
        return found
    raise ValueError(
        f"{sample.source or sample.id}: the teacher completion is malformed ({found.reason}). "
        "Expected <caption>..</caption><think>..</think><answer>..</answer>."
    )


def _with_mismatched(batch: list[Judged], fraction: float, seed: int, step: int) -> list[Judged]:
    """Matching-aware negatives: some students replaced by the teacher parts of another prompt."""
    rng = Random(seed_of(seed, "warmup", step, "mismatched"))
    result = []
    for i, item in enumerate(batch):
        other = batch[(i + 1 + rng.randrange(max(1, len(batch) - 1))) % len(batch)].teacher
        mismatched = rng.random() < fraction and other != item.teacher
        result.append(Judged(item.prompt, item.teacher, (other,)) if mismatched else item)
    return result


def _report_artefacts(context: Context, pairs: list[Judged]) -> float:
    auc = artefact_auc(
        [pair.teacher.render() for pair in pairs],
        [pair.students[0].render() for pair in pairs],
    )
    context.run.console.print(f"artefact probe (0.5: form gives nothing away): AUC {auc:.2f}")
    if auc > ARTEFACT_WARNING:
        context.run.console.print(
            f"[yellow]warning: length and white space alone tell teacher from student (AUC {auc:.2f} "
            f"> {ARTEFACT_WARNING}); the discriminator may win without looking at content[/]"
        )
    return auc
