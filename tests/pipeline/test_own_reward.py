"""A reward function in the user's own file: trained on, recorded, and refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
import yaml

from prism_lite import pipeline
from prism_lite.files import read_jsonl
from prism_lite.recipe import to_dict
from prism_lite.stages.align import run_align
from prism_lite.stages.rlvr import run_rlvr
from tests.micro import micro_recipe, quiet_console
from tests.pipeline.commands import check_refused, in_process

BREVITY = '''"""A reward for short completions."""

from prism_lite.rewards import completion_text


def brevity(prompts, completions, answer, **columns):
    """Return 1 for no text at all and less for a longer one; no opinion on every fourth one."""
    rewards = [1 - len(completion_text(completion)) / 1000 for completion in completions]
    rewards[3::4] = [None] * len(rewards[3::4])
    return rewards
'''
FEW_STEPS = ("sft.steps=2", "warmup.steps=1", "align.steps=1", "rlvr.steps=3", "eval.num_samples=1")


@pytest.fixture
def recipe(micro_cache, tmp_path):
    file = tmp_path / "micro.yaml"
    file.write_text(yaml.safe_dump(to_dict(micro_recipe())))
    return file


@pytest.fixture
def write(tmp_path):
    """`write(body)` makes a file with `f(prompts, completions, **columns)` and names it as a setting."""

    def write_function(body: str) -> str:
        file = tmp_path / "my_rewards.py"
        file.write_text(f"def f(prompts, completions, **columns):\n    {body}\n")
        return f"{file}:f"

    return write_function


def test_a_file_of_ten_lines_trains_from_end_to_end(recipe, tmp_path, monkeypatch):
    file, out = tmp_path / "my_rewards.py", tmp_path / "run"
    file.write_text(BREVITY)
    assert len(BREVITY.splitlines()) == 10
    monkeypatch.chdir(tmp_path)
    command = ("run", "--recipe", recipe, "--out", out, *FEW_STEPS)
    own = "rlvr.rewards.my_rewards.py:brevity=0.5"
    done = in_process(*command, own)
    assert done.returncode == 0, done.stderr

    lines = [m for m in read_jsonl(out / "metrics.jsonl") if m["stage"] == "rlvr"]
    assert len(lines) == 3
    weights = {"accuracy": 0.8, "format": 0.2, "brevity": 0.5}
    for line in lines:
        records = read_jsonl(out / "rollouts" / f"rlvr-{line['step']}.jsonl")
        brief = [r["rewards"]["brevity"] for r in records if "brevity" in r["rewards"]]
        assert line["rewards/brevity/mean"] == pytest.approx(sum(brief) / len(brief))
        totals = []
        for i, record in enumerate(records):
            assert set(record["rewards"]) == set(weights) - ({"brevity"} if i % 4 == 3 else set())
            if i % 4 != 3:
                expected = 1 - len(record["completion"]) / 1000
                assert record["rewards"]["brevity"] == pytest.approx(expected, abs=1e-6)
            totals.append(sum(weights[name] * v for name, v in record["rewards"].items()))
        assert line["reward"] == pytest.approx(sum(totals) / len(totals), abs=1e-5)
        total_PG = torch.tensor(totals).view(2, 4)
        deviation_P1 = total_PG.std(1, correction=0, keepdim=True).clamp(min=1e-6)
        advantages = torch.tensor([record["advantage"] for record in records]).view(2, 4)
        expected = (total_PG - total_PG.mean(1, keepdim=True)) / deviation_P1
        torch.testing.assert_close(advantages, expected, rtol=1e-3, atol=1e-3)

    assert "0.5 brevity (`my_rewards.py:brevity`)" in (out / "README.md").read_text()
    assert (out / "plots" / "rlvr.png").is_file()
    recorded = json.loads((out / "env.json").read_text())["rewards"]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    assert recorded == {"brevity": {"file": str(file.resolve()), "sha256": digest}}
    settings = yaml.safe_load((out / "config.yaml").read_text())["rlvr"]["rewards"]
    assert settings == {"accuracy": 0.8, "format": 0.2, f"{file}:brevity": 0.5}

    assert in_process(*command, own).returncode == 0, "a finished run is not done again"
    file.write_text(BREVITY.replace("1000", "2000"))
    check_refused(in_process(*command, own), "brevity", "has changed", "another --out")
    check_refused(in_process(*command), "my_rewards.py:brevity = 0.5")


def test_a_failure_in_training_is_one_sentence_with_the_users_line(
    micro_run, recipe, write, tmp_path
):
    """The function works for made-up completions and fails for those of the policy."""
    setting = write('return [1 / ("a picture" in text or not text) for text in completions]')
    out = tmp_path / "run"
    shutil.copytree(micro_run[1], out)
    shutil.rmtree(out / "stages" / "rlvr")
    command = ("rlvr", "--recipe", recipe, "--out", out, f"rlvr.rewards.{setting}=1")
    file = setting.partition(":")[0]
    done = in_process(*command)
    check_refused(done, "reward f failed for prompt", f"{file}, line 2: ZeroDivisionError")
    write("return [1.0] * len(completions)")  # no checkpoint has used the former one
    assert in_process(*command).returncode == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [("return 1 / 0", "line 2: ZeroDivisionError"), ("return [1.0]", "1 values for 2 completions")],
)
def test_the_reward_is_called_before_the_model_is_loaded(
    task, write, tmp_path, monkeypatch, body, words
):
    monkeypatch.setattr(pipeline, "load_task", lambda config, **_: task)
    monkeypatch.setattr(pipeline, "base_folder", lambda config: pytest.fail("too late"))
    config = micro_recipe(rlvr__rewards={write(body): 1.0})
    with pytest.raises(ValueError, match=words):
        pipeline.run(config, tmp_path / "out", console=quiet_console())
    assert not (tmp_path / "out").exists()


def test_rollouts_without_any_reward_are_left_out_with_an_alarm(play, write):
    setting = write("return [None] * len(completions)")
    _, folder, lines = play(run_rlvr, rlvr__steps=1, rlvr__rewards={setting: 1.0})
    (line,) = lines
    assert line["alarms/unscored_rollouts"] == 1 and "unscored_rollouts" in play.text
    assert not [name for name in line if name.startswith("reward")], "absent is absent"
    records = read_jsonl(folder / "rollouts" / "rlvr-0.jsonl")
    assert all(record["rewards"] == {} and record["advantage"] == 0 for record in records)


def test_a_kl_in_the_reward_is_no_reward_by_itself(play, write):
    setting = write("return [None, 1.0, 0.0, 0.0] * (len(completions) // 4)")
    _, folder, _ = play(
        run_rlvr,
        rlvr__steps=1,
        rlvr__rewards={setting: 1.0},
        rlvr__kl_weight=0.1,
        rlvr__kl_in="reward",
        rlvr__kl_kind="k1",
        rlvr__kl_reference="base",
    )
    advantages = [r["advantage"] for r in read_jsonl(folder / "rollouts" / "rlvr-0.jsonl")]
    assert [bool(advantage) for advantage in advantages] == [False, True, True, True] * 2


def test_dynamic_sampling_without_accuracy_looks_at_the_whole_reward(play, write):
    """The first prompt of each batch has no spread in this reward; accuracy does not count."""
    setting = write("return [float(i % 2 and i >= 4) for i in range(len(completions))]")
    _, folder, lines = play(
        run_rlvr,
        rlvr__steps=1,
        rlvr__rewards={setting: 1.0},
        rlvr__dynamic_sampling=True,
        rlvr__max_sampled_batches=2,
    )
    assert lines[0]["dynamic_sampling/num_filtered"] == 2
    records = read_jsonl(folder / "rollouts" / "rlvr-0.jsonl")
    is_used = [any(r["advantage"] for r in records[i : i + 4]) for i in range(0, 16, 4)]
    assert is_used == [False, True, False, True]


def test_alignment_modes_have_the_same_rewards(play, write):
    setting = write("return [float(len(text)) for text in completions]")
    _, folder, lines = play(
        run_align, align__mode="rlvr", align__steps=1, rlvr__rewards={setting: 0.1, "format": 1.0}
    )
    records = read_jsonl(folder / "rollouts" / "align-0.jsonl")
    lengths = [len(record["completion"]) for record in records]
    assert [record["rewards"]["f"] for record in records] == lengths
    line = next(line for line in lines if line["step"] == 0)
    assert line["rewards/f/mean"] == pytest.approx(sum(lengths) / len(lengths))
    assert "rewards/accuracy/mean" not in line
