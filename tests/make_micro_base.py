"""Train the micro base that the tests share and store it: `python -m tests.make_micro_base`.

Trained on each machine, it would differ in its last digits between CPUs, and so would what the tests
sample from it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from prism_lite.digits.base_model import tiny_base_folder, train_tiny_base
from tests.micro import micro_recipe

MICRO_BASE = Path(__file__).parent / "fixtures" / "micro_base"


def put_micro_base(cache: Path) -> Path:
    """Copy the stored base into a cache, under the key of the micro recipe."""
    config = micro_recipe()
    folder = tiny_base_folder(config.tiny, config.data.digits, cache=cache)
    assert folder.name == (MICRO_BASE / "KEY").read_text().strip(), (
        "the stored micro base is of other settings or an older BASE_VERSION: "
        "run `python -m tests.make_micro_base`"
    )
    shutil.copytree(MICRO_BASE, folder, ignore=shutil.ignore_patterns("KEY"))
    return folder


if __name__ == "__main__":
    torch.set_num_threads(1)
    shutil.rmtree(MICRO_BASE, ignore_errors=True)
    MICRO_BASE.mkdir(parents=True)
    recipe = micro_recipe()
    train_tiny_base(recipe.tiny, recipe.data.digits, MICRO_BASE)
    key = tiny_base_folder(recipe.tiny, recipe.data.digits).name
    (MICRO_BASE / "KEY").write_text(key + "\n")
