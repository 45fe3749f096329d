"""A reward function of the user's gives the same here and as TRL's `reward_funcs=[f]`."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from trl import GRPOTrainer

from prism_lite.rewards.group_rewards import rewards_of
from prism_lite.rewards.load import Reward, load_rewards
from prism_lite.types import Group, Sample, Turn
from tests.micro import micro_recipe
from tests.unit.rewards.test_rewards_of_groups import rollout

FUNCTIONS = """
import asyncio

from trl.rewards import get_soft_overlong_punishment

from prism_lite.rewards import completion_text


def plain(prompts, completions, answer, **columns):
    texts = [completion_text(completion) for completion in completions]
    return [None if "?" in t else float(gold in t) for t, gold in zip(texts, answer)]


async def later(prompts, completions, level, **columns):
    await asyncio.sleep(0.01)
    return [len(p) + n for p, n in zip(prompts, level)]


too_long = get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=5)
"""


def calculate_in_trl(reward: Reward, groups: list[Group], *, is_conversational: bool):
    """Call TRL's own method on rows of its standard or conversational data format."""
    PartialState()  # TRL's log wants it
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", is_main_process=True),
        args=SimpleNamespace(report_to=[]),
        state=SimpleNamespace(global_step=0),
        reward_funcs=[reward.function],
        reward_processing_classes=[None],
        reward_func_names=[reward.name],
        environments=None,
        async_loop=loop,
        _log_completion_extra=None,
        _log_metric=None,
    )
    rows = [(group.sample, one) for group in groups for one in group.rollouts]
    inputs = [
        {"prompt": sample.question, "answer": sample.answer, **sample.columns} for sample, _ in rows
    ]
    prompts = [row["prompt"] for row in inputs]
    completions = [one.text for _, one in rows]
    if is_conversational:
        prompts = [[{"role": "user", "content": text}] for text in prompts]
        completions = [[{"role": "assistant", "content": text}] for text in completions]
    token_ids = [list(one.token_ids) for _, one in rows]
    values = GRPOTrainer._calculate_rewards(trainer, inputs, prompts, completions, token_ids)
    loop.call_soon_threadsafe(loop.stop)
    return values[:, 0]


@pytest.mark.parametrize("name", ["plain", "later", "too_long"])
def test_a_function_gives_the_same_in_trl(tmp_path, name):
    file = tmp_path / "my_rewards.py"
    file.write_text(FUNCTIONS)
    (reward,) = load_rewards(micro_recipe(rlvr__rewards={f"{file}:{name}": 1.0}))
    groups = [
        Group(
            Sample("a", (Turn("user", "How many?"),), answer="7", columns={"level": 2}),
            (rollout("7"), rollout("8", num_tokens=8), rollout("?")),
        ),
        Group(
            Sample("b", (Turn("user", "And now?"),), answer="8", columns={"level": 5}),
            (rollout("?", num_tokens=10), rollout("8"), rollout("7")),
        ),
    ]
    ours = rewards_of(groups, [reward])[name]
    theirs = calculate_in_trl(reward, groups, is_conversational=False)
    torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=0, atol=0)
    assert len(set(ours.nan_to_num(-1).tolist())) > 1
    if name == "plain":  # completion_text reads both of TRL's forms
        theirs = calculate_in_trl(reward, groups, is_conversational=True)
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=0, atol=0)
