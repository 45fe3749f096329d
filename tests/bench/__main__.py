"""Benchmarks: `python -m tests.bench` runs every part, `python -m tests.bench kernels` one.

A part is a module of this folder with a `main(arguments: list[str]) -> None`; further arguments go
to the part that is named.
"""

import importlib
import sys

PARTS = ("kernels", "engine")


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] not in PARTS and not arguments[0].startswith("-"):
        print(f"unknown part {arguments[0]!r}; there are: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    named = arguments[:1] if arguments and arguments[0] in PARTS else []
    for part in named or PARTS:
        importlib.import_module(f"tests.bench.{part}").main(arguments[len(named) :])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
