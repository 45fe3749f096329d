"""Forms of the game that are not the default: does one of them win on tuning seeds?

    python -m tests.bench game_options --out runs/game_options

Each variant trains the arm "game-both" of `prism-lite study` (alignment, then RLVR with the game kept on)
from the SFT policy that all variants of a seed share, for as many updates of as many completions. Variants
that are settings are given as such; the others replace a function of the package while they run, and use
the default's warm-up unless their scores need one of their own. The same command again resumes. The seeds
are for tuning: figures that are reported elsewhere are of others. Results are added to those of
results/game_options.json.

Shape letters: K pairs, R rollouts or parts, P prompts.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from torch import Tensor

import triton_kernels as tk
from prism_lite.data.task import load_task
from prism_lite.digits.wording import verify
from prism_lite.discriminator import step
from prism_lite.discriminator.model import Discriminator
from prism_lite.files import read_json, read_jsonl, write_json
from prism_lite.models.packing import forward_branches
from prism_lite.parts import Parts
from prism_lite.policy import advantages
from prism_lite.stages import game, rlvr, warmup
from prism_lite.study import run as study_run
from prism_lite.study.arms import START
from prism_lite.study.plan import PlannedRun, plan_study
from prism_lite.study.results import figures_of, judge_of
from prism_lite.version import git_commit

ARM = "game-both"
SEEDS = (11, 12)
# Two thirds of the recipe's updates and half of its held-out prompts: the options are compared where
# transfer is still rising.
SHORTENED = ("align.steps=20", "rlvr.steps=20", "eval.num_prompts=128")
RESULTS = Path(__file__).parent / "results" / "game_options.json"
COLUMNS = (
    "transfer_accuracy",
    "caption_accuracy",
    "accuracy",
    "think_validity",
    "captions_while_training",
    "auc_perception",
    "auc_reasoning",
)
AVERAGE_KEPT = 0.9  # share of its old value that the moving average keeps at each step


@dataclass(frozen=True)
class Variant:
    """One form of the game.

    Attributes:
        settings: "key=value".
        patch: replaces functions of the package inside; None: nothing.
        shares_warmup: the default's warm-up is used where the settings allow it.
    """

    settings: tuple[str, ...] = ()
    patch: Callable[[], contextlib.AbstractContextManager[Any]] | None = None
    shares_warmup: bool = True


def relativistic_loss(
    teacher_score_K: Tensor, student_score_K: Tensor, is_tie_K: Tensor | None = None
) -> Tensor:
    """Compare each side with the mean of the other side of the same prompt (arXiv 1807.00734).

    Pairs of a prompt are adjacent and have one teacher score.
    """
    _, counts_P = torch.unique_consecutive(teacher_score_K.detach(), return_counts=True)
    none_K = torch.zeros_like(teacher_score_K, dtype=torch.bool)
    values = (teacher_score_K, student_score_K, none_K if is_tie_K is None else is_tie_K)
    rows = (value_K.split(counts_P.tolist()) for value_K in values)
    total_K = []
    for teacher_G, student_G, is_tie_G in zip(*rows, strict=True):
        teacher_G, student_G = teacher_G[~is_tie_G], student_G[~is_tie_G]
        if len(student_G):
            of_teacher_G = F.softplus(student_G.mean() - teacher_G)
            total_K.append(0.5 * (of_teacher_G + F.softplus(student_G - teacher_G)))
    return torch.cat(total_K).mean() if total_K else (student_score_K * 0).sum()


class AveragedScores:
    """`discriminator_step` whose scores are those of a moving average of the weights."""

    def __init__(self) -> None:
        self._averages: dict[Discriminator, dict[str, Tensor]] = {}

    def __call__(
        self,
        backbone: Any,
        discriminator: Discriminator,
        optimizer: Any,
        judged: Sequence[step.JudgedPrompt],
        config: Any,
        **options: Any,
    ) -> step.GameScores:
        weights = {name: value.clone() for name, value in discriminator.state_dict().items()}
        average = self._averages.setdefault(discriminator, dict(weights))
        for name, value in weights.items():
            average[name] = AVERAGE_KEPT * average[name] + (1 - AVERAGE_KEPT) * value
        discriminator.load_state_dict(average)
        options_of_scores = {**options, "replayed": ()}
        averaged = step.discriminator_step(
            backbone, discriminator, None, judged, config, **options_of_scores
        )
        discriminator.load_state_dict(weights)
        learned = step.discriminator_step(
            backbone, discriminator, optimizer, judged, config, **options
        )
        return dataclasses.replace(
            learned, teacher_P2=averaged.teacher_P2, students=averaged.students
        )


def powered_advantages(power: float) -> Callable[..., Tensor]:
    """Return `aligned_advantages` with sign(z) |z|^power in place of z."""

    def aligned(
        perception_R: Tensor,
        reasoning_R: Tensor,
        *,
        group_size: int,
        well_formed_R: Tensor,
        alpha: float,
        floors: tuple[float, float],
    ) -> Tensor:
        z_perception_R, z_reasoning_R = (
            advantages.group_zscore(
                score_R, group_size=group_size, counted_R=well_formed_R, floor=floor
            )
            for score_R, floor in zip((perception_R, reasoning_R), floors, strict=True)
        )
        powered_R, powered_reasoning_R = (
            z_R.sign() * z_R.abs() ** power for z_R in (z_perception_R, z_reasoning_R)
        )
        return alpha * powered_R + (1 - alpha) * powered_reasoning_R

    return aligned


def with_teacher(sample: Any) -> Any:
    """Append the teacher's text to the question, for the discriminator only."""
    *turns, last = sample.turns
    text = f"{last.text}\n{sample.teacher_parts.render()}"
    return dataclasses.replace(sample, turns=(*turns, dataclasses.replace(last, text=text)))


def judged_with_teacher(context: Any, groups: Sequence[Any]) -> list[step.JudgedPrompt]:
    """Return teacher and students of each prompt, with the teacher's text in the prompt."""
    return [
        step.JudgedPrompt(
            context.backbone.prompt(with_teacher(g.sample)), g.sample.teacher_parts, g.students
        )
        for g in groups
        if g.students
    ]


def implicit_features(
    self: Discriminator, backbone: Any, pack: Any
) -> tuple[Tensor, list[tk.Routing], tuple[int, ...]]:
    """Return the features of `Discriminator`: no hidden state, log-probs minus those of the trunk.

    The score is then an implicit reward (arXiv 2502.01456): a weight times mean (and, with less weight,
    minimum) of the log-ratio of experts and trunk over a part's tokens.
    """
    states = self.prompt_cache.states(backbone, pack.prompts)
    with torch.no_grad():
        of_trunk_FD = forward_branches(backbone.core, pack, states, attention=backbone.attention)
        trunk_R2 = self._likelihood_features(backbone, pack, of_trunk_FD)
    with self._attached(backbone, pack) as routings:
        hidden_FD = forward_branches(backbone.core, pack, states, attention=backbone.attention)
    ratio_R2 = self._likelihood_features(backbone, pack, hidden_FD) - trunk_R2
    zeros_RD = torch.zeros_like(hidden_FD[pack.last_R.to(hidden_FD.device)].float())
    return torch.cat([zeros_RD, ratio_R2], 1), routings, pack.branch_lengths


@contextlib.contextmanager
def replaced(*replacements: tuple[Any, str, Any]) -> Iterator[None]:
    """Replace attributes inside: (owner, name, new value)."""
    with contextlib.ExitStack() as stack:
        for owner, name, value in replacements:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


def signed_power(power: float) -> contextlib.AbstractContextManager[None]:
    aligned = powered_advantages(power)
    return replaced(
        (advantages, "aligned_advantages", aligned), (rlvr, "aligned_advantages", aligned)
    )


GRGC = "discriminator.grgc_weight=0.01"  # its paper's weight
VARIANTS = {
    "default": Variant(),
    "grgc": Variant((GRGC,)),
    "replay": Variant(("align.replay_fraction=0.5",)),
    "policy-rate-3e-4": Variant(
        ("align.optim.learning_rate=3e-4", "rlvr.optim.learning_rate=3e-4")
    ),
    "policy-rate-1e-3": Variant(
        ("align.optim.learning_rate=1e-3", "rlvr.optim.learning_rate=1e-3")
    ),
    "relativistic": Variant(
        patch=lambda: replaced((step, "bradley_terry_loss", relativistic_loss))
    ),
    "moving-average": Variant(
        patch=lambda: replaced((game, "discriminator_step", AveragedScores()))
    ),
    "signed-power-0.5": Variant(patch=lambda: signed_power(0.5)),
    "signed-power-2": Variant(patch=lambda: signed_power(2.0)),
    "grgc-signed-power-2": Variant((GRGC,), patch=lambda: signed_power(2.0)),
    "teacher-in-context": Variant(
        patch=lambda: replaced(
            (game, "judged_prompts", judged_with_teacher), (warmup, "_judged", judged_with_teacher)
        ),
        shares_warmup=False,
    ),
    "implicit-reward": Variant(
        patch=lambda: replaced((Discriminator, "_pack_features", implicit_features)),
        shares_warmup=False,
    ),
}


def train(names: Sequence[str], seeds: Sequence[int], out: Path) -> dict[str, list[PlannedRun]]:
    """Train the variants that are not finished; return their runs by name, those of SFT left out."""
    console = Console()
    starts: dict[int, PlannedRun] = {}
    shared: list[PlannedRun] = []
    runs = {}
    for name in names:
        variant = VARIANTS[name]
        planned = plan_study(
            "tiny",
            SHORTENED,
            arms=[ARM],
            seeds=seeds,
            out=out / name,
            starts=starts,
            tuned={ARM: variant.settings},
        )
        runs[name] = [run for run in planned if run.arm != START]
        before = shared if variant.shares_warmup else [*starts.values()]
        once = [*{run.folder: run for run in [*before, *planned]}.values()]
        with variant.patch() if variant.patch else contextlib.nullcontext():
            study_run._run_all(once, name, console)
        shared = once if variant.shares_warmup else shared
        print(table(figures(runs)), flush=True)
    return runs


def figures(runs: dict[str, list[PlannedRun]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the figures of each variant and seed: last evaluation, AUC, captions."""
    return {
        name: {
            str(run.seed): figures_of(run, "rlvr")
            | judge_of(run)
            | {"captions_while_training": round(captions_while_training(run), 4)}
            for run in of_variant
        }
        for name, of_variant in runs.items()
    }


def captions_while_training(run: PlannedRun) -> float:
    """Return the share of rollouts with a right caption, mean over all updates: how soon they turn."""
    task = load_task(run.config)
    samples = {sample.id: sample for sample in (*task.align, *task.rlvr)}
    shares = []
    for file in (run.folder / "rollouts").glob("*.jsonl"):
        verdicts = [
            verify(samples[record["prompt_id"]].facts, Parts(**record["parts"])).caption
            if "parts" in record
            else False
            for record in read_jsonl(file)
        ]
        shares.append(fmean(verdicts))
    return fmean(shares)


def table(of_variants: dict[str, dict[str, dict[str, float]]]) -> str:
    """Write the figures as a Markdown table: the mean, and of several seeds each one."""
    titles = (column.replace("_", " ") for column in COLUMNS)
    lines = [f"| variant | seeds | {' | '.join(titles)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for variant, seeds in of_variants.items():
        cells = [variant, ", ".join(seeds)]
        for column in COLUMNS:
            values = [figures[column] for figures in seeds.values()]
            each = f" ({', '.join(f'{value:.3f}' for value in values)})" if len(values) > 1 else ""
            cells.append(f"{fmean(values):.3f}{each}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench game_options")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS], default=[*VARIANTS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[*SEEDS])
    options = parser.parse_args(arguments)
    runs = train(options.variants, options.seeds, options.out)
    chosen = ["--seeds", *map(str, options.seeds), "--variants", *options.variants]
    command = ["python", "-m", "tests.bench", "game_options", "--out", "runs/game_options", *chosen]
    before = read_json(RESULTS) if RESULTS.exists() else {"commands": [], "variants": {}}
    write_json(
        RESULTS,
        {
            "commands": [*before["commands"], shlex.join(command)],
            "commit": git_commit(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "arm": ARM,
            "common_settings": list(SHORTENED),
            "settings": {name: list(variant.settings) for name, variant in VARIANTS.items()},
            "variants": before["variants"] | figures(runs),
        },
    )


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
