"""A teacher on this machine: a Qwen3-VL in NF4, sampled as the stages sample, several rows at a time.

A larger model than the student's fits the same card, where it is alone: `memory_plan` says how much it
needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from prism_lite import signals
from prism_lite.config import RunConfig
from prism_lite.digits.base_model import base_folder
from prism_lite.models.backbone import Backbone, load_backbone
from prism_lite.planner.architectures import architecture_of
from prism_lite.planner.plan import card_for
from prism_lite.planner.simulate_phase import Simulated, simulate_phase
from prism_lite.planner.workload import Phase
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.teach.ask import Outcome, Task
from prism_lite.teach.journal import Journal
from prism_lite.teach.replies import (
    Received,
    checked,
    next_prompt,
    progress_of,
)
from prism_lite.teach.settings import TeachSettings
from prism_lite.types import Rollout, Sample, Stopped


def memory_plan(config: RunConfig, card_gib: float | None) -> Simulated:
    """Predict the memory of sampling the teacher, which is alone on the card.

    Args:
        card_gib: None for the CPU.

    Raises:
        ValueError: the model's sizes are not known without a download.
    """
    card = card_for(config, card_gib)
    return simulate_phase(config, architecture_of(config), card, Phase("align", "sample"))


def load_teacher(config: RunConfig) -> Backbone:
    """Load the model.

    Raises:
        ValueError: it is not a Qwen3-VL.
        RuntimeError: the machine lacks what it needs.
    """
    return load_backbone(config.model, config.lora, base_folder(config), seed=config.seed)


def ask_local(
    tasks: Iterable[Task],
    backbone: Backbone,
    config: RunConfig,
    journal: Journal,
    settings: TeachSettings,
) -> Iterator[Outcome]:
    """Yield the outcomes of tasks, `config.align.prompts_per_step` rows at a time.

    Raises:
        Stopped: a signal has come.
    """
    tasks = iter(tasks)
    while batch := list(islice(tasks, config.align.prompts_per_step)):
        yield from _ask_batch(batch, backbone, config, journal, settings)
        if signals.received():
            raise Stopped(f"stopped by {signals.received()}; every reply that has come is stored")


def _ask_batch(
    tasks: Sequence[Task],
    backbone: Backbone,
    config: RunConfig,
    journal: Journal,
    settings: TeachSettings,
) -> Iterator[Outcome]:
    """Ask about some rows until each has its completions, or they are given up."""
    replies = {task.key: list(task.replies) for task in tasks}
    waiting = list(tasks)
    while waiting:
        by_count: dict[int, list[tuple[Task, Sample]]] = {}
        for task in waiting:
            progress = progress_of(replies[task.key], settings)
            prompt = next_prompt(task.prompt, progress.again)
            failure = _too_long(backbone, prompt) if progress.num_left else ""
            if failure or not progress.num_left:
                yield Outcome(task, progress, failure)
                continue
            count = 1 if progress.again else progress.num_left
            by_count.setdefault(count, []).append((task, prompt))
        waiting = [task for asked in by_count.values() for task, _ in asked]
        for count, asked in by_count.items():
            groups = sample_groups(
                backbone,
                [prompt for _, prompt in asked],
                group_size=count,
                sampling=config.sampling,
                seed=(config.seed, "teach", len(replies[asked[0][0].key])),
            )
            for (task, prompt), group in zip(asked, groups, strict=True):
                num_prompt_tokens = len(backbone.prompt(prompt))
                for rollout in group.rollouts:
                    received = _received(rollout, num_prompt_tokens)
                    reply = checked(task.sample, received, keep_right=settings.keep_right)
                    journal.add_reply(task.key, reply)
                    replies[task.key].append(reply)


def _too_long(backbone: Backbone, prompt: Sample) -> str:
    """Return why a prompt cannot be asked, or "": its pictures make it too long."""
    try:
        backbone.prompt(prompt)
    except ValueError as error:
        return str(error)
    return ""


def _received(rollout: Rollout, num_prompt_tokens: int) -> Received:
    return Received(
        rollout.text, rollout.finish == "length", num_prompt_tokens, len(rollout.token_ids)
    )
