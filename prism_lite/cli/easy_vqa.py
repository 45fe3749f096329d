"""`prism-lite data easy-vqa`: write the public data set easy-VQA as files for every stage."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_command(commands: Any) -> None:
    """Add `easy-vqa` to the subparsers of `data`."""
    command = commands.add_parser(
        "easy-vqa",
        help="write the public data set easy-VQA for every stage (needs pip install easy-vqa)",
    )
    command.add_argument("--out", metavar="DIR", required=True, help="folder of the files")
    command.add_argument(
        "--misread_rate", type=_share, default=0.9, metavar="RATE",
        help="how often a demonstration misreads what the question does not ask about (default 0.9)",
    )  # fmt: skip
    command.add_argument(
        "--slip_rate", type=_share, default=0.2, metavar="RATE",
        help="how often a demonstration's think ends in a wrong step (default 0.2)",
    )  # fmt: skip
    command.add_argument("--seed", type=int, default=0, metavar="N", help="draws order and errors")
    command.add_argument(
        "--tiny", action="store_true",
        help="also train a tiny base model on these pictures (cached) and write DIR/tiny.yaml",
    )  # fmt: skip
    command.set_defaults(handler=_write, takes_settings=False)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a rate from 0 to 1.")
    return value


def _write(arguments: argparse.Namespace, _overrides: list[str]) -> int:
    """Write the files and print what they hold, and the commands that train on them.

    Raises:
        ValueError: the package is not installed.
    """
    from prism_lite.easy_vqa.rows import Rates, write_files

    out = Path(arguments.out)
    rates = Rates(arguments.misread_rate, arguments.slip_rate)
    for file in write_files(out, rates=rates, seed=arguments.seed):
        print(
            f"{file.path}: {file.num_rows} rows on {file.num_pictures} pictures; {file.num_left_out} "
            "questions are left out, as the answers do not settle color and shape of their picture"
        )
    if arguments.tiny:
        from prism_lite.easy_vqa import base_model

        base = base_model.easy_vqa_base(rates, base_model.CONFIG)
        recipe = base_model.write_recipe(out, base)
        print(f"train the tiny model: prism-lite run --recipe {recipe} --out runs/easy")
    return 0
