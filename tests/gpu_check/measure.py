"""One check as a process: `python -m tests.gpu_check.measure NAME ... --device cuda --record FILE`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check.measure")
    parser.add_argument("check", choices=("kernels", "micro", "size"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--record", type=Path, required=True)
    options = parser.parse_args(arguments)
    facts: dict[str, Any] = {}
    for more in facts_of(options):
        facts |= more
        options.record.write_text(json.dumps(facts))  # what is known so far, if the time ends


def facts_of(options: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
    """Yield the facts of the check as they become known."""
    if options.check == "kernels":
        from tests.gpu_check.kernels import kernel_facts

        return kernel_facts(options.device, small=options.small)
    if options.check == "micro":
        from tests.gpu_check.micro_run import micro_facts

        dtype, backend = (*options.names, "transformers")[:2]
        return micro_facts(options.device, dtype, backend)
    from tests.gpu_check.full_size import size_facts

    return size_facts(
        options.names[0], options.device, small=options.small, is_random=options.random
    )


if __name__ == "__main__":
    main(sys.argv[1:])
