"""Benchmarks: `python -m tests.bench` runs the parts on speed, `python -m tests.bench kernels` one.

`python -m tests.bench game_options` compares forms of the game. A part is a module of this folder with a
`main(arguments: list[str]) -> None`; further arguments go to the part that is named.
"""

import importlib
import sys

PARTS = ("kernels", "engine")
ON_DEMAND = ("game_options",)  # trains for an hour: not among those that run without a name


def main(arguments: list[str]) -> int:
    parts = (*PARTS, *ON_DEMAND)
    if arguments and arguments[0] not in parts and not arguments[0].startswith("-"):
        print(f"unknown part {arguments[0]!r}; there are: {', '.join(parts)}", file=sys.stderr)
        return 2
    named = arguments[:1] if arguments and arguments[0] in parts else []
    for part in named or PARTS:
        importlib.import_module(f"tests.bench.{part}").main(arguments[len(named) :])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
