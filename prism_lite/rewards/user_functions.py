"""Call a user's reward function with the columns of the rows; its errors name function and row."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import threading
from collections.abc import Sequence
from typing import Any

import torch

from prism_lite import parts
from prism_lite.parts import Parts
from prism_lite.rewards.load import Reward, describe_error
from prism_lite.types import Group, Rollout, Sample

# Columns of every row. Further fields of a data file are passed under their own names.
COLUMNS = ("id", "answer", "accepted", "choices", "demonstration", "teacher", "student", "facts")


def trl_arguments(groups: Sequence[Group]) -> dict[str, Any]:
    """Return the arguments that every reward function gets, R values each."""
    samples = [group.sample for group in groups for _ in group.rollouts]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return {
        **{name: [getattr(sample, name) for sample in samples] for name in COLUMNS},
        "prompts": [sample.question for sample in samples],
        "completions": [rollout.text for rollout in rollouts],
        "completion_ids": [list(rollout.token_ids) for rollout in rollouts],
    }


def call_user_function(reward: Reward, groups: Sequence[Group]) -> list[float]:
    """Call a user's reward function once for all rollouts of the groups, as TRL does.

    Where it fails it is called again with the rollouts of one prompt at a time, to name the prompt.

    Returns:
        R rewards; NaN where the function returned None.

    Raises:
        ValueError: the function raised an exception, or did not return a finite number or None for
            each completion.
    """
    arguments = _file_columns(reward, groups) | trl_arguments(groups)
    num_rollouts = len(arguments["completions"])
    try:
        values = reward.function(**arguments)
        if inspect.iscoroutine(values):
            values = asyncio.run_coroutine_threadsafe(values, _event_loop()).result()
        values = list(values)
        if len(values) != num_rollouts:
            raise ValueError(f"it returned {len(values)} values for {num_rollouts} completions")
        for value in values:
            if value is not None and not math.isfinite(value):
                raise ValueError(f"it returned {value}")
        return [math.nan if value is None else float(value) for value in values]
    except Exception as error:
        for group in groups if len(groups) > 1 else ():
            call_user_function(reward, [group])  # raises where it fails for this prompt alone
        samples = [group.sample for group in groups]
        rows = [
            f"{sample.id} ({sample.source})" if sample.source else sample.id for sample in samples
        ]
        raise ValueError(
            f"reward {reward.name} failed for prompt {', '.join(rows)}: "
            f"{describe_error(error, reward.file, reward.function)}. Fix the function: expected a finite "
            "number or None for each completion, which is a text."
        ) from error


def check_user_function(reward: Reward, samples: Sequence[Sample]) -> None:
    """Check a user's function before training: its signature, and a call with made-up completions.

    Args:
        samples: the rows that it will be called for; the first one is used for the call.

    Raises:
        ValueError: the function cannot be called with the columns of the rows, or see
            `call_user_function`.
    """
    completions = (Parts("a picture", "It shows this.", samples[0].answer or "yes").render(), "")
    rollouts = (
        Rollout((0,), text, parts.parse(text), "end", torch.zeros(1), torch.zeros(1))
        for text in completions
    )
    group = Group(samples[0], tuple(rollouts))
    columns = dict.fromkeys(name for sample in samples for name in sample.columns)
    try:
        signature = inspect.signature(reward.function)
        if "images" in signature.parameters:
            columns["images"] = None
        signature.bind(**columns | trl_arguments([group]))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"reward {reward.name} ({reward.file}) cannot be called as {reward.name}(prompts, "
            f"completions, **columns): {error}. Give it that signature; the columns are "
            f"{', '.join(sorted({*columns, *COLUMNS, 'images'}))}."
        ) from error
    call_user_function(reward, [group])


def _file_columns(reward: Reward, groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Return the further fields of the rows, None where a row has none, and pictures if asked for."""
    samples = [group.sample for group in groups for _ in group.rollouts]
    parameters = inspect.signature(reward.function).parameters
    names = {name for sample in samples for name in sample.columns}
    names |= {
        p.name for p in parameters.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    }
    columns = {name: [sample.columns.get(name) for sample in samples] for name in names}
    if "images" in parameters:  # opened only for a function that names them
        opened = [[picture.open() for picture in group.sample.pictures] for group in groups]
        columns["images"] = [
            images for group, images in zip(groups, opened, strict=True) for _ in group.rollouts
        ]
    return columns


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """Start the one event loop of all async functions, so that a client kept between calls works.

    It runs in a thread of its own: a notebook's main thread has a running loop already.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop
