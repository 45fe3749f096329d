"""Whether the texts that the policy learns from are shorter than what it may write.

A policy that imitates a longer text is cut at `sampling.max_completion_tokens`, and a cut completion has
no answer: however long SFT is, none would be well-formed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console

from prism_lite.config import RunConfig
from prism_lite.console import say
from prism_lite.data.task import TaskData
from prism_lite.models.backbone import Backbone

# Share of longer texts: from here on rollouts raise the alarm truncated_completions.
_MAX_LONGER = 0.2
_MOST_LONGER = 0.5  # above it most of what the policy learns to write is cut
_ROOM = 1.25  # samples vary around the texts that they imitate
_ROUNDED_TO = 16
_MOST_READ = 2000  # texts, spread over the file: more take seconds at every start


def check_text_lengths(
    config: RunConfig, backbone: Backbone, task: TaskData, console: Console, *, has_begun: bool
) -> None:
    """Compare demonstrations and teacher completions with the limit of what is sampled.

    Args:
        task: with the rows of the stages that are still to be trained.
        has_begun: the run has computed something, and its limit cannot be changed any more.

    Raises:
        ValueError: most of them are longer, and the run has not begun.
    """
    limit = config.sampling.max_completion_tokens
    demonstrations = [sample.demonstration or "" for sample in task.sft]
    teachers = [text for sample in task.align for text in sample.teachers]
    for name, texts in (
        ("demonstrations", demonstrations if config.sft.steps else []),
        ("teacher completions", teachers if config.align.steps else []),
    ):
        read = texts[:: math.ceil(len(texts) / _MOST_READ) or 1]
        lengths = [len(backbone.tokenize(text)) for text in read]
        num_longer = sum(length > limit for length in lengths)
        if num_longer <= _MAX_LONGER * len(lengths):
            continue
        message = (
            f"{num_longer} of {len(lengths)} {name} have more tokens than sampling.max_completion_tokens = "
            f"{limit} (the longest {max(lengths)}): samples of a policy that imitates them are cut there "
            f"and are malformed. Give sampling.max_completion_tokens={enough_tokens(lengths)}"
        )
        if num_longer > _MOST_LONGER * len(lengths) and not has_begun:
            raise ValueError(f"{message}, or shorter texts.")
        say(console, f"alarm long_texts: {message} in another --out, or shorter texts.", "bold red")
        return


def enough_tokens(lengths: Sequence[int]) -> int:
    """Return a limit that leaves a quarter of room above 95 % of the lengths, a multiple of 16."""
    length = sorted(lengths)[math.ceil(0.95 * len(lengths)) - 1]
    return math.ceil(_ROOM * length / _ROUNDED_TO) * _ROUNDED_TO
