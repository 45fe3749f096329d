"""Record a finished run for users who do not have it.

    python -m demo.record runs/tiny

replaces the recording in demo/sample_run (or writes to a second argument) by that of a run with the weights
of all its stages. A recording is a small run folder: settings, environment, all metrics and results, the
rollouts of a few steps, each stage's final weights as float16 (its adapter and discriminator, so that the
recording answers drawings), and in `demo/` completions and scored groups sampled with these weights.
`demo/recorded.json` describes the contents.

The examples are held-out prompts on which the stages differ most, at most two of a kind of question. In the
first one SFT and RLVR alone state a misread digit and the last policy states the right ones, if possible
with a wrong answer before and nothing wrong at the end; without a corrected caption nothing is recorded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from demo.models.model import Model
from demo.runs import folder, game
from demo.runs.folder import SAMPLE_RUN, STAGE_TITLES
from demo.runs.samples import sample_line
from demo.screens.marks import Marks, mark
from prism_lite.digits.wording import DigitsFacts
from prism_lite.runs.checkpoint import load_final, save_final
from prism_lite.types import Rollout, Sample

NUM_EXAMPLES = 6
_NUM_CANDIDATES = 64  # of the held-out and of the transfer prompts each
_MAX_OF_KIND = 2
_NUM_GROUPS = 4
GROUP_SIZE = 8
SEEDS = (0, 1)
NUM_STEPS = 5  # whose rollouts are kept, of each stage that has them
_COPIED = ("config.yaml", "env.json", "metrics.jsonl", "results.json")

_PARTS = ("caption", "think", "answer")
Stages = Mapping[str, Marks]


def record(run: Path, out: Path) -> None:
    """Write the recording of a finished run, in place of an older one.

    Raises:
        ValueError: the run is not finished, `out` is not a recording, or no example shows a corrected
            caption.
    """
    if not folder.is_finished(run):
        raise ValueError(f"{run} is not finished: record a complete run.")
    if out.exists() and any(out.iterdir()) and not (out / "demo" / "recorded.json").is_file():
        raise ValueError(f"{out} is not empty and not a recording: name a new folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".recording-") as unfinished:
        new = Path(unfinished) / "new"
        kept = _copy(run, new)
        model = Model(new)  # with the rounded weights
        write_examples(model, new, must_correct=True)
        if game.steps_of(run) and folder.has_discriminator(run, "align"):
            write_game(model, run, new)
        _describe(new, model, kept)
        shutil.rmtree(out, ignore_errors=True)
        new.rename(out)


def write_examples(model: Model, path: Path, *, must_correct: bool = False) -> None:
    """Write what the tabs Story, Compare and Discriminator show of a run, in its folder `demo`.

    Raises:
        ValueError: `must_correct`, and no example shows a corrected caption.
    """
    examples = choose_examples(model, must_correct=must_correct)
    (path / "demo").mkdir(exist_ok=True)
    _write_lines(path / "demo" / "compare.jsonl", _completions(model, examples))
    if model.discriminator_stage is not None and "align" in model.stages:
        _write_lines(path / "demo" / "groups.jsonl", _groups(model))


def write_game(model: Model, run: Path, out: Path) -> None:
    """Write the steps of the alignment game with the tokens' shares, in the folder `demo` of `out`.

    Args:
        run: the folder with the rollouts.

    Raises:
        ValueError: the run has no scored rollouts of alignment, or its discriminator is missing.
    """
    logged = [game.logged_step(run, step) for step in game.shown_steps(run)]
    steps = [step for step in logged if step is not None]
    if not steps or not folder.has_discriminator(out, "align"):
        raise ValueError(f"{run} has no scored rollouts of alignment, or not its discriminator.")
    (out / "demo").mkdir(exist_ok=True)
    _write_lines(out / "demo" / "game.jsonl", [model.play(step) for step in steps])


def choose_examples(model: Model, *, must_correct: bool) -> list[Sample]:
    """Return the held-out prompts to show, by the most likely completions of every stage.

    The first is one whose caption was corrected, where there is one.

    Raises:
        ValueError: `must_correct`, and on none of them the last policy corrects what SFT and RLVR alone
            misread.
    """
    candidates = [
        *model.task.heldout[:_NUM_CANDIDATES],
        *model.task.transfer[:_NUM_CANDIDATES],
    ]
    marks_of: dict[str, dict[str, Marks]] = {sample.id: {} for sample in candidates}
    for stage in model.stages:
        rollouts = model.rollouts(stage, candidates, seed=0, temperature=0.0)
        for sample, rollout in zip(candidates, rollouts, strict=True):
            marks_of[sample.id][stage] = mark(rollout.text, rollout.finish, sample)
    # stable: the first of equals stays first
    ordered = sorted(candidates, key=lambda sample: -num_differences(marks_of[sample.id]))
    corrected = [sample for sample in ordered if is_caption_corrected(marks_of[sample.id])]
    if not corrected and must_correct:
        misreading = [stage for stage in ("sft", "control") if stage in model.stages]
        raise ValueError(
            f"on none of {len(candidates)} held-out prompts do "
            f"{' and '.join(STAGE_TITLES[stage] for stage in misreading)} misread a digit and the last "
            f"policy ({STAGE_TITLES[model.stages[-1]]}) read all of them: record another run."
        )
    if corrected:
        first = max(corrected, key=lambda sample: _clarity(marks_of[sample.id]))
        ordered = [first, *(sample for sample in ordered if sample is not first)]
    examples: list[Sample] = []
    num_of_kind: Counter[str] = Counter()
    for sample in ordered:
        # questions about files are of no known kind: any number of them
        kind = sample.facts.kind if isinstance(sample.facts, DigitsFacts) else sample.id
        num_of_kind[kind] += 1
        if num_of_kind[kind] <= _MAX_OF_KIND:
            examples.append(sample)
    return examples[:NUM_EXAMPLES]


def is_caption_corrected(marks_of: Stages) -> bool:
    """Return whether SFT and RLVR alone misread a digit and the last policy states the right ones."""
    earlier, last = _compared(marks_of)
    return bool(last.caption) and all(bool(marks.misread) for marks in earlier)


def _clarity(marks_of: Stages) -> tuple[int, int]:
    """Count what is right at the end, and the answers that were wrong before."""
    earlier, last = _compared(marks_of)
    num_right = sum(bool(getattr(last, part)) for part in _PARTS)
    return num_right, sum(marks.answer is False for marks in earlier)


def _compared(marks_of: Stages) -> tuple[list[Marks], Marks]:
    """Return the marks of SFT and RLVR alone, and those of the last policy."""
    *_, last = marks_of.values()
    return [marks_of[stage] for stage in ("sft", "control") if stage in marks_of], last


def num_differences(marks_of: Stages) -> int:
    """Count the pairs of stages, and the parts, of which one is right and the other is not."""
    return sum(
        bool(getattr(one, part)) != bool(getattr(other, part))
        for one, other in itertools.combinations(marks_of.values(), 2)
        for part in _PARTS
    )


def _copy(run: Path, out: Path) -> dict[str, list[int]]:
    """Copy what a recording keeps of a run; return the steps of each stage whose rollouts are kept."""
    (out / "rollouts").mkdir(parents=True)
    for name in _COPIED:
        shutil.copy(run / name, out / name)
    shutil.copytree(run / "evaluations", out / "evaluations")
    kept: dict[str, list[int]] = {}
    for stage in ("align", "rlvr"):
        steps = folder.rollout_steps(run, stage)
        indices = {round(i * (len(steps) - 1) / (NUM_STEPS - 1)) for i in range(NUM_STEPS)}
        kept[stage] = [steps[index] for index in sorted(indices)] if steps else []
        for step in kept[stage]:
            shutil.copy(run / "rollouts" / f"{stage}-{step}.jsonl", out / "rollouts")
    for stage in sorted(final.parent.name for final in (run / "stages").glob("*/final")):
        weights = load_final(run / "stages" / stage)
        rounded = {
            name: {key: tensor.half() for key, tensor in tensors.items()}
            for name, tensors in weights.items()
        }
        save_final(out / "stages" / stage, rounded)
    return kept


def _describe(out: Path, model: Model, kept: Mapping[str, Sequence[int]]) -> None:
    """Write the recording's samples, and what it contains."""
    _write_lines(out / "demo" / "samples.jsonl", _samples(model, out))
    about = {
        "how": "python -m demo.record RUN, after `prism-lite run` with the settings in config.yaml",
        "when": time.strftime("%Y-%m-%d"),
        "device": model.device,
        "kept": f"{', '.join(_COPIED)} and evaluations/ unchanged; the rollouts of these steps; the final "
        "weights of each stage, rounded to float16",
        "rollout_steps": kept,
        "left_out": "checkpoints, optimizer states, plots, the model card, the other rollouts",
        "demo/compare.jsonl": "completions of held-out prompts by every stage, with marks; chosen by how "
        "much the stages differ, the first one because its caption was corrected (rates: results.json)",
        "demo/samples.jsonl": "the prompts with gold answer and teacher",
        "demo/groups.jsonl": "groups of the aligned policy with scores and routing",
        "demo/game.jsonl": "the first completion of each shown alignment step as it was logged, and its "
        "teacher's, with scores and token shares of the discriminator at the end of alignment",
    }
    _write_lines(out / "demo" / "recorded.json", [about], indent=1)


def _completions(model: Model, examples: Sequence[Sample]) -> Iterable[dict[str, Any]]:
    settings = [(0.0, 0), *((1.0, seed) for seed in SEEDS)]
    rollouts: dict[tuple[Any, ...], Sequence[Rollout]] = {
        (stage, *setting): model.rollouts(stage, examples, seed=setting[1], temperature=setting[0])
        for stage in model.stages
        for setting in settings
    }
    for i, sample in enumerate(examples):
        for temperature, seed in settings:
            for stage in model.stages:
                rollout = rollouts[stage, temperature, seed][i]
                yield {
                    "prompt_id": sample.id,
                    "stage": stage,
                    "seed": seed,
                    "temperature": temperature,
                    "completion": rollout.text,
                    "finish_reason": rollout.finish,
                    "num_tokens": len(rollout.token_ids),
                    "marks": asdict(mark(rollout.text, rollout.finish, sample)),
                }


def _groups(model: Model) -> Iterable[dict[str, Any]]:
    first: dict[str, Sample] = {}  # of each question
    for sample in model.task.align:
        first.setdefault(sample.question, sample)
    for sample in list(first.values())[:_NUM_GROUPS]:
        yield model.group(sample, "align", group_size=GROUP_SIZE, seed=0)


def _samples(model: Model, out: Path) -> Iterable[dict[str, Any]]:
    """Yield the sample of every prompt in the recording."""
    files = [*(out / "rollouts").glob("*.jsonl"), *(out / "demo").glob("*.jsonl")]
    ids = {line["prompt_id"] for file in files for line in folder.read_lines(file)}
    task = model.task
    for sample in (*task.align, *task.rlvr, *task.heldout, *task.transfer):
        if sample.id in ids:
            yield sample_line(sample)


def _write_lines(path: Path, records: Iterable[dict[str, Any]], indent: int | None = None) -> None:
    path.write_text("".join(json.dumps(r, indent=indent) + "\n" for r in records), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a finished run folder with its weights")
    parser.add_argument(
        "out", type=Path, nargs="?", default=SAMPLE_RUN, help="default: %(default)s"
    )
    arguments = parser.parse_args()
    try:
        record(arguments.run, arguments.out)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
