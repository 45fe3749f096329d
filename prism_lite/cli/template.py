"""`prism-lite data template`: a data file to begin with. The work is done in data/template.py."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

# Three rows are too few for a discriminator: alignment imitates the teacher.
_TRAIN = (
    "prism-lite run --recipe tiny-files --out runs/template data.train={file} sft.steps=150 "
    "sft.batch_size=3 align.method=sft align.steps=4 rlvr.game=off rlvr.steps=2"
)


def add_command(commands: Any) -> None:
    """Add `data template` to the subcommands of `data`."""
    command = commands.add_parser(
        "template",
        help="write a data file of three rows with pictures, to begin with",
        description="Writes three rows that serve every stage, and their pictures, and prints the commands "
        "that check and train them.",
    )
    command.add_argument("path", metavar="FILE", help="a new .jsonl file")
    command.set_defaults(handler=_template, takes_settings=False)


def _template(arguments: argparse.Namespace, _overrides: list[str]) -> int:
    """Write the template and print what to do with it."""
    from prism_lite.data.template import write_template

    files = write_template(Path(arguments.path))
    file = shlex.quote(arguments.path)
    print(f"3 rows: {files[0]}\n3 pictures: {files[1].parent}\n")
    print(f"prism-lite data check {file}\n{_TRAIN.format(file=file)}")
    return 0
