"""The studies of the tiny recipe that are stored with the package, as study.json.

`tiny.json`: the recipe and its rivals. `tiny-more-arms.json`: other forms of the game, on two
seeds. `tiny-other-arms.json`: further rivals and forms, on three.
`tiny-erring-teacher.json`: a teacher that errs in a quarter of its captions and thinks.
`tiny-drift.json`: a base that reads correctly, and slips or a misreading in the demonstrations.
`tiny-tuned.json`: the recipe and its rivals, each at the best of three learning rates.
`tiny-erring-rate.json`: the erring teacher with twice the recipe's rate in RLVR.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prism_lite.config import RunConfig
from prism_lite.files import read_json
from prism_lite.recipe import load_recipe, to_dict
from prism_lite.study.results import FIGURES

MEASURED = Path(__file__).with_name("tiny-more-arms.json")
# Settings that leave the figures of the last policy what they are, but for chance.
_FREE = (
    "seed", "save_every", "save_minutes", "max_skipped_steps", "track", "eval", "model", "tiny",
)  # fmt: skip


def room_of(config: RunConfig) -> str | None:
    """Return what exact verdicts in place of the scores reached, where it was measured.

    That is the arm "oracle" of the stored study: how much is left for a better discriminator.

    Returns:
        A sentence; None for settings other than the tiny recipe's.
    """
    if _compared(config) != _compared(load_recipe("tiny")):
        return None
    study = read_json(MEASURED)
    oracle = study["arms"]["oracle"]
    figures = ", ".join(
        f"{title} {oracle['means'][name]['mean']:.2f}"
        for name, title in FIGURES.items()
        if name != "format_rate"
    )
    return (
        "For comparison: with exact verdicts in place of the discriminator's scores RLVR reached "
        f"{figures} (arm oracle of the study, {len(oracle['seeds'])} seeds: "
        "prism_lite/study/tiny-more-arms.json)."
    )


def _compared(config: RunConfig) -> dict[str, Any]:
    return {key: value for key, value in to_dict(config).items() if key not in _FREE}
