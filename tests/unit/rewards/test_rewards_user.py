"""Reward functions of the user's own: every way of naming, calling and failing."""

from __future__ import annotations

import math
import sys
import textwrap

import pytest
import torch
from PIL import Image

from prism_lite.data.formats.load import load_samples
from prism_lite.data.task import load_task
from prism_lite.rewards.group_rewards import rewards_of
from prism_lite.rewards.load import load_rewards
from prism_lite.rewards.user_functions import check_user_function
from prism_lite.runs.environment import check_same_rewards, write_environment
from prism_lite.stages.preflight import check_rewards
from prism_lite.types import Group, Picture, Sample, Turn
from tests.file_rows import COLUMNS, make_rows, write_rows
from tests.micro import micro_recipe
from tests.unit.rewards.test_rewards_of_groups import GOOD, rollout

BREVITY = """
def brevity(prompts, completions, **columns):
    return [-len(text) / 100 for text in completions]
"""


@pytest.fixture
def load(tmp_path):
    """`load(code)` writes the code to my_rewards.py and loads the function `f` (or another one)."""

    def write_and_load(code: str, name: str = "f"):
        file = tmp_path / "my_rewards.py"
        file.write_text(textwrap.dedent(code))
        (reward,) = load_rewards(micro_recipe(rlvr__rewards={f"{file}:{name}": 0.5}))
        return reward

    return write_and_load


def group(name: str, *texts: str, answer: str = "7", source: str = "", **columns) -> Group:
    sample = Sample(
        name, (Turn("user", f"Question {name}"),), answer=answer, source=source, columns=columns
    )
    return Group(sample, tuple(map(rollout, texts)))


GROUPS = (group("a", GOOD.format(7), "x"), group("b", "yy", "", answer="8", source="rows, line 2"))


def test_a_relative_path_starts_at_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(BREVITY)
    monkeypatch.chdir(tmp_path)
    (reward,) = load_rewards(micro_recipe(rlvr__rewards={"my_rewards.py:brevity": 0.5}))
    assert (reward.name, reward.weight) == ("brevity", 0.5)
    assert reward.file == (tmp_path / "my_rewards.py").resolve()
    rewards = rewards_of(GROUPS, [reward])
    expected = torch.tensor([-len(GOOD.format(7)), -1, -2, 0]) / 100
    torch.testing.assert_close(rewards, {"brevity": expected})


def test_a_function_of_an_installed_module_is_loaded_beside_the_built_in_ones(
    tmp_path, monkeypatch
):
    (tmp_path / "package_of_rewards").mkdir()
    (tmp_path / "package_of_rewards" / "text.py").write_text(BREVITY)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {"package_of_rewards.text:brevity": 0.5, "format": 1.0}
    rewards = load_rewards(micro_recipe(rlvr__rewards=names))
    assert [(reward.name, reward.weight) for reward in rewards] == [("brevity", 0.5), ("format", 1)]
    assert rewards[0].file == tmp_path / "package_of_rewards" / "text.py"
    assert rewards_of(GROUPS, rewards)["format"].tolist() == [1, 0, 0, 0]


def test_an_edited_file_is_read_again_within_one_process(load):
    """Not a cached compilation: the new text has the size and second of the old one."""
    code = "def f(prompts, completions, **columns):\n    return [{}] * len(completions)\n"
    assert rewards_of(GROUPS, [load(code.format("1.5"))])["f"].tolist() == [1.5] * 4
    first = load(code.format("1.5"))
    second = load(code.format("2.5"))
    assert rewards_of(GROUPS, [second])["f"].tolist() == [2.5] * 4
    assert first.sha256 != second.sha256


def test_dataclasses_work_in_a_reward_file(load):
    code = """
    from __future__ import annotations
    from dataclasses import dataclass, field

    @dataclass
    class Marks:
        values: list[float] = field(default_factory=list)

    def f(prompts, completions, **columns):
        return Marks([1.0] * len(completions)).values
    """
    assert rewards_of(GROUPS, [load(code)])["f"].tolist() == [1.0] * 4


def test_columns_come_by_name_one_value_per_completion(load):
    code = """
    def f(prompts, completions, completion_ids, answer, level=None, **columns):
        assert prompts == ["Question a"] * 2 + ["Question b"] * 2, prompts
        assert completion_ids == [[1, 1]] * 4
        assert answer == ["7", "7", "8", "8"] and level == [3, 3, None, None]
        assert columns["id"] == ["a", "a", "b", "b"] and columns["accepted"] == [()] * 4
        return level[:2] + [None, 0.25]
    """
    groups = [group("a", "", "", level=3), group("b", "", "", answer="8")]
    values = rewards_of(groups, [load(code)])["f"].tolist()
    assert values[:2] == [3, 3] and math.isnan(values[2]) and values[3] == 0.25


def test_a_required_column_that_no_row_of_the_batch_has_is_none(load):
    reward = load("def f(prompts, completions, level, **columns): return level")
    assert rewards_of([group("a", "", "", level=3)], [reward])["f"].tolist() == [3, 3]
    assert rewards_of([group("a", "", "")], [reward])["f"].isnan().all()


def test_pictures_are_opened_for_a_function_that_names_images(load):
    code = """
    def f(prompts, completions, images, **columns):
        return [sum(image.size[0] for image in pictures) for pictures in images]
    """
    pictures = tuple(Picture(str(width), Image.new("RGB", (width, 8))) for width in (16, 32))
    sample = Sample("a", (Turn("user", "?"),), pictures, answer="7")
    reward = load(code)
    assert rewards_of([Group(sample, (rollout(""),))], [reward])["f"].tolist() == [48]
    check_user_function(reward, [sample])


def test_an_async_function_is_awaited_in_one_loop(load):
    """A client that a module keeps belongs to the loop of its first call."""
    code = """
    import asyncio
    lock = asyncio.Lock()

    async def f(prompts, completions, **columns):
        async def one(text):
            async with lock:
                await asyncio.sleep(0.01)
                return len(text)
        return await asyncio.gather(*(one(text) for text in completions))
    """
    reward = load(code)
    for _ in range(2):
        assert rewards_of(GROUPS[1:], [reward])["f"].tolist() == [2, 0]


def test_fields_of_a_data_file_are_columns(tmp_path, load):
    rows = [{"difficulty": i, "tags": ["a"], **row} for i, row in enumerate(make_rows(tmp_path, 2))]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    first, second = load_samples(path, columns=COLUMNS)
    assert first.columns["difficulty"] == 0 and second.columns["tags"] == ["a"]
    assert "images" not in first.columns
    reward = load("def f(prompts, completions, difficulty, **columns): return difficulty")
    check_user_function(reward, [first, second])
    assert rewards_of([Group(second, (rollout(""),))], [reward])["f"].tolist() == [1]


def test_rows_need_an_answer_only_where_a_reward_reads_it(tmp_path):
    rows = make_rows(tmp_path, 4)
    for row in rows[:3]:
        row["answer"] = row["demonstration"] = None
    path = write_rows(tmp_path / "rows.jsonl", rows)
    files = {"data__task": "files", "data__train": str(path), "data__columns": COLUMNS}
    for rewards, num_rows in (({"accuracy": 1}, 1), ({"format": 1, "my.py:f": 1}, 4)):
        task = load_task(micro_recipe(**files, rlvr__rewards=rewards, sft__steps=0))
        assert len(task.rlvr) == num_rows


@pytest.mark.parametrize(
    ("code", "name", "words"),
    [
        (None, "f", r"rlvr\.rewards\..*my_rewards\.py:f: /.*my_rewards\.py does not exist"),
        ("def g(): pass", "f", "has no function f; its functions are g"),
        ("f = 1", "f", "has no function f; its functions are none"),
        ("def f(:", "f", r"importing .* failed: SyntaxError: .*line 1"),
        ("import no_such_module", "f", r"my_rewards\.py, line 1: ModuleNotFoundError"),
        ("a = 1\nb = a / 0", "f", r"my_rewards\.py, line 2: ZeroDivisionError"),
        ("def format(): pass", "format", "format is the name of a built-in reward"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(tmp_path, load, code, name, words):
    with pytest.raises(ValueError, match=words) as caught:
        if code is None:
            load_rewards(micro_recipe(rlvr__rewards={f"{tmp_path}/my_rewards.py:f": 1}))
        load(code or "", name)
    assert "\n" not in str(caught.value)


def test_a_function_built_into_python_is_refused_for_its_signature():
    (reward,) = load_rewards(micro_recipe(rlvr__rewards={"builtins:len": 1.0}))
    with pytest.raises(ValueError, match=r"reward len \(builtins\) cannot be called"):
        check_user_function(reward, [group("a").sample])


def test_a_module_that_cannot_be_imported_is_named():
    with pytest.raises(ValueError, match=r"importing no_such_package\.text failed.*Install it"):
        load_rewards(micro_recipe(rlvr__rewards={"no_such_package.text:f": 1}))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def f(prompts, completions): return [0.0] * 2", "unexpected keyword argument 'level'"),
        ("def f(texts, **columns): return [0.0] * 2", "missing a required argument: 'texts'"),
        (
            "def f(completions, trainer_state, **columns): return [0.0] * 2",
            "'trainer_state'.* the columns are accepted, answer, .*images, level",
        ),
    ],
)
def test_a_signature_that_does_not_fit_is_one_sentence(load, code, words):
    with pytest.raises(ValueError, match=rf"reward f .*my_rewards\.py.*{words}"):
        check_user_function(load(code), [group("a", level=1).sample])


FAILURES = [
    ("return [0.0]", "line 2: ValueError: it returned 1 values for 2 completions"),
    ("return [0.0, float('nan')]", "line 2: ValueError: it returned nan"),
    ("return [float('inf'), 0.0]", "line 2: ValueError: it returned inf"),
    ("return ['good', 'bad']", "line 2: TypeError: must be real number, not str"),
    ("return None", "line 2: TypeError: 'NoneType' object is not iterable"),
    (
        "n = len(prompts)\n    return [1 / (n - 2)] * n",
        "line 4: ZeroDivisionError: division by zero",
    ),
    ("return [c[0]['content'] for c in completions]", "line 3: .*each completion, which is a text"),
]


@pytest.mark.parametrize(("body", "words"), FAILURES)
def test_the_made_up_row_finds_what_always_fails(load, body, words):
    reward = load(f"\ndef f(prompts, completions, **columns):\n    {body}\n")
    with pytest.raises(
        ValueError, match=rf"reward f failed for prompt a: .*my_rewards\.py, {words}"
    ):
        check_user_function(reward, [group("a").sample])


@pytest.mark.parametrize(("body", "words"), FAILURES)
def test_a_failure_in_training_names_the_prompt_and_keeps_the_cause(load, body, words):
    """Only the second prompt fails; the function gets both at once."""
    code = f"""
def f(prompts, completions, **columns):
    {body}

def g(prompts, completions, **columns):
    values = [0.5] * len(prompts)
    if "Question b" in prompts:
        found = f(prompts[-2:], completions[-2:])
        values = None if found is None else values[2:] + list(found)
    return values
"""
    load(code)
    reward = load(code, "g")
    assert rewards_of(GROUPS[:1], [reward])["g"].tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"prompt b \(rows, line 2\): .*my_rewards\.py") as caught:
        rewards_of(GROUPS, [reward])
    message = str(caught.value)
    assert message.startswith("reward g failed") and "\n" not in message
    assert isinstance(caught.value.__cause__, Exception)
    assert type(caught.value.__cause__).__name__ in words + message


def test_a_failure_that_does_not_happen_again_names_all_prompts(load):
    reward = load(
        """
        calls = []
        def f(prompts, completions, **columns):
            calls.append(1)
            return [0.0] * (len(prompts) - (len(calls) == 1))
        """
    )
    with pytest.raises(
        ValueError, match=r"for prompt a, b \(rows, line 2\): .* it returned 3 values"
    ):
        rewards_of(GROUPS, [reward])


def test_an_error_of_several_lines_is_still_one_sentence(load):
    reward = load("def f(prompts, completions, **columns): raise OSError(chr(10).join('ab'))")
    with pytest.raises(ValueError, match=r"OSError: a b\. Fix the function"):
        rewards_of(GROUPS[:1], [reward])


def test_a_gold_answer_without_a_box_is_found_before_training():
    config = micro_recipe(rlvr__rewards={"boxes": 1.0})
    task = load_task(config)
    with pytest.raises(ValueError, match=r"holds no box, which the reward boxes expects"):
        check_rewards(config, load_rewards(config), ("rlvr",), task)
    check_rewards(config, load_rewards(config), ("sft",), task)


def test_a_reward_file_that_changed_is_refused_once_a_stage_has_used_it(tmp_path, load):
    config = micro_recipe()
    core = torch.nn.Linear(1, 1)
    core.device, core.dtype, core.config = torch.device("cpu"), torch.float32, None
    rewards = [load(BREVITY, "brevity")]
    write_environment(tmp_path, config, core, rewards)
    changed = [load(BREVITY + "# faster\n", "brevity")]
    check_same_rewards(tmp_path, config, changed)  # no stage has used it
    (tmp_path / "stages" / "align").mkdir(parents=True)
    check_same_rewards(tmp_path, config, changed)
    with pytest.raises(
        ValueError, match=r"brevity, .*my_rewards\.py, has changed since stage align"
    ):
        check_same_rewards(tmp_path, micro_recipe(align__mode="rlvr"), changed)
    (tmp_path / "stages" / "rlvr").mkdir()
    with pytest.raises(ValueError, match=r"stage rlvr .*restore the earlier file, remove .*/rlvr"):
        check_same_rewards(tmp_path, config, changed)
    check_same_rewards(tmp_path, config, rewards)


def test_the_reward_module_does_not_hide_another_one(load):
    load(BREVITY, "brevity")
    assert "my_rewards" not in sys.modules
