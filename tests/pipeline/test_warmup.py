"""The warm-up: which prompts, when it ends, how the heads start, and what a resumed one remembers."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from prism_lite.data.task import load_task
from prism_lite.discriminator.model import discriminator_for
from prism_lite.discriminator.probes import PairResult
from prism_lite.discriminator.step import JudgedPrompt, discriminator_step
from prism_lite.files import read_jsonl
from prism_lite.models.optim import make_optimizer
from prism_lite.parts import Parts
from prism_lite.runs.folder import RunFolder, Stopped, open_run
from prism_lite.runs.resume import check_same_settings
from prism_lite.seeding import batch_at
from prism_lite.stages import warmup
from prism_lite.stages.align import run_align
from prism_lite.stages.context import Context
from prism_lite.stages.student_groups import split_groups, student_groups
from prism_lite.stages.warmup import EarlyStop, run_warmup
from tests.judging import CONFIG, STUDENTS, TEACHER, prompts_of, with_trunk, woken
from tests.micro import micro_recipe, quiet_console

CHANNELS = ("perception", "reasoning")


def groups_of(config, backbone, task, folder):
    with open_run(folder, config, quiet_console()) as run:
        return student_groups(Context(config, run, backbone, task))


def test_its_prompts_are_not_those_of_the_first_alignment_steps(backbone, tmp_path):
    config = micro_recipe(
        data__num_align=40, warmup__num_prompts=16, align__steps=6, align__prompts_per_step=4
    )
    task = load_task(config)
    groups = groups_of(config, backbone, task, tmp_path / "r")
    warmed = [group.sample.key for group in groups]
    aligned = {
        sample.key
        for step in range(config.align.steps)
        for sample in batch_at(task.align, step, 4, config.seed, "align")
    }
    assert len(aligned) == 24 and len(set(warmed)) == len(warmed) and not set(warmed) & aligned
    assert all(1 <= len(group.students) <= config.warmup.group_size for group in groups)
    kept, aside = split_groups(groups)
    assert 0 < len(aside) <= len(groups) // 3
    ids = [{p.id for g in side for p in g.sample.pictures} for side in (kept, aside)]
    assert not ids[0] & ids[1]


def test_recorded_rows_of_one_prompt_form_groups(backbone, task, tmp_path):
    def row(i: int, number: int):
        parts = Parts(f"- row {number}", f"first {number}", "no")
        return dataclasses.replace(task.align[i], student=parts.render(), row=number)

    recorded = [row(0, 1), row(1, 2), row(0, 3), row(0, 4), row(0, 5), row(0, 6)]
    config = micro_recipe(warmup__pairs_per_step=8, warmup__group_size=4)
    groups = groups_of(
        config, backbone, dataclasses.replace(task, warmup=tuple(recorded)), tmp_path / "r"
    )
    numbers = [[student.caption[-1] for student in group.students] for group in groups]
    assert numbers == [["1", "3", "4", "5"], ["6"], ["2"]]


def test_early_stop_counts_checks_without_a_lower_loss():
    losses = [1.0, 0.8, 0.9, 0.8, 0.7, 0.75, None, 0.7, 0.71]
    stop = EarlyStop(3)
    assert [stop.is_over(loss) for loss in losses] == [False] * 8 + [True]
    first, again = EarlyStop(2), EarlyStop(2)
    assert [first.is_over(loss) for loss in (0.5, 0.6)] == [False, False]
    again.load(first.state())
    assert again.is_over(0.55)
    never = EarlyStop(0)
    assert not any(never.is_over(1.0) for _ in range(50))


@pytest.fixture
def scripted_losses(monkeypatch):
    """Held-out losses by script, after the measurement of the untrained discriminator."""

    def script(losses):
        remaining = [1.0, *losses]

        def result(*_):
            loss = remaining.pop(0)
            return PairResult((0.6, 0.4), (loss, loss + 0.2), (9, 9))

        monkeypatch.setattr(warmup, "heldout_pairs", result)

    return script


def steps_of(lines):
    return [line["step"] for line in lines if "step_time" in line]


def test_it_ends_when_held_out_pairs_stop_improving(play, scripted_losses):
    scripted_losses([0.6, 0.5, 0.55, 0.52])
    options = {"warmup__steps": 20, "warmup__check_every": 2, "warmup__patience": 2}
    _, folder, lines = play(run_warmup, **options)
    assert steps_of(lines) == list(range(8))
    assert "warm-up ends after 8 of 20 steps" in play.text
    assert [m["disc/heldout_loss"] for m in lines if "disc/heldout_loss" in m] == pytest.approx(
        [0.7, 0.6, 0.65, 0.62]
    )
    assert lines[-1]["step"] == 8 and "disc/grounding_perception" in lines[-1]
    assert (folder / "stages/warmup/final").is_dir()


def test_a_resumed_warm_up_remembers_its_best_loss(play, scripted_losses, monkeypatch):
    """Stopped after the third of four checks: it ends at the same step with the same bytes."""
    options = {"warmup__steps": 20, "warmup__check_every": 2, "warmup__patience": 2}
    losses = [0.6, 0.5, 0.55, 0.52]
    scripted_losses(losses)
    _, folder, lines = play(run_warmup, **options)
    expected = (folder / "stages/warmup/final/discriminator.safetensors").read_bytes()
    log = RunFolder.log

    def log_and_stop(self, stage, step, metrics):
        log(self, stage, step, metrics)
        if step == 5:
            self.request_stop()

    scripted_losses(losses)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", log_and_stop)
        with pytest.raises(Stopped, match="after step 6"):
            play(run_warmup, **options)
    scripted_losses(losses[3:])
    _, folder, again = play(run_warmup, keep=True, **options)
    assert steps_of(again) == steps_of(lines) == list(range(8))
    assert (folder / "stages/warmup/final/discriminator.safetensors").read_bytes() == expected


@pytest.mark.parametrize(
    ("accuracy", "num_prompts", "factors"),
    [
        ((0.31, 0.85), (19, 19), (0.1, 1.0)),
        ((0.65, 0.75), (19, 19), (0.1, 1.0)),  # Wilson: 0.43 and 0.53 at the lower end
        ((0.95, None), (19, 0), (1.0, 0.1)),
    ],
)
def test_likelihood_keeps_its_weight_only_where_it_tells_the_teacher(
    backbone, monkeypatch, accuracy, num_prompts, factors
):
    discriminator = discriminator_for(backbone, CONFIG, seed=0)
    result = PairResult(accuracy, (0.7, 0.7), num_prompts)
    monkeypatch.setattr(warmup, "heldout_pairs", lambda *_: result)
    console = quiet_console()
    context = type("C", (), {"backbone": backbone, "run": type("R", (), {"console": console})})
    metrics = warmup._choose_head_start(context, discriminator, [object()])  # type: ignore[arg-type]
    heads = (discriminator.perception_head, discriminator.reasoning_head)
    for channel, head, factor, value in zip(CHANNELS, heads, factors, accuracy, strict=True):
        assert head[-2:].tolist() == pytest.approx([3 * factor, 0.3 * factor])
        assert metrics[f"disc/head_start_{channel}"] == factor
        assert metrics.get(f"disc/heldout_pair_accuracy_{channel}_untrained") == value
    assert "perception" in console.file.getvalue() and "tenth" in console.file.getvalue()


def test_both_probes_are_logged_and_printed(play):
    _, _, lines = play(run_warmup, warmup__steps=2)
    line = lines[-1]
    for channel in CHANNELS:
        for when in ("", "_untrained"):
            for variant in ("", "_likelihood", "_without_likelihood"):
                assert 0 <= line[f"disc/grounding_{channel}{when}{variant}"] <= 1
        # an untrained head has weights of the likelihood only
        assert line[f"disc/grounding_{channel}_untrained_without_likelihood"] == 0.5
        name = f"disc/grounding_{channel}_untrained"
        assert line[f"{name}_likelihood"] == line[name]
        assert f"{channel}, untrained" in play.text and f"{channel}, trained" in play.text
    assert "likelihood alone" in play.text
    steps = [m for m in lines if "step_time" in m]
    assert all(0 <= m["disc/corrupted"] <= 1 for m in steps)


def test_ties_have_no_loss_and_are_not_counted(backbone, task):
    """A student with the teacher's caption: perception from the other pair only, weights as without it."""
    with_trunk(backbone)
    prompt = prompts_of(backbone, task, 1)[0]
    config = dataclasses.replace(
        CONFIG, score_penalty=0.0, balance_weight=0.0, reasoning_sees_caption=False
    )
    same_caption = dataclasses.replace(STUDENTS[0], caption=TEACHER.caption)
    same_reasoning = dataclasses.replace(TEACHER, caption=STUDENTS[1].caption)
    results = []
    # each channel has one pair with a loss: the caption of the one, the reasoning of the other
    for students in ((same_caption, same_reasoning), (STUDENTS[0],), (STUDENTS[1],)):
        discriminator = woken(backbone, config)
        optimizer = make_optimizer(list(discriminator.parameters()), config.optim)
        optimizer.inner = torch.optim.SGD(discriminator.parameters(), lr=1.0)
        before = {k: v.clone() for k, v in discriminator.state_dict().items()}
        judged = [JudgedPrompt(prompt, TEACHER, students)]
        game = discriminator_step(
            backbone, discriminator, optimizer, judged, config, learning_rate=1.0, max_grad_norm=1e9
        )
        moved = {k: before[k] - v for k, v in discriminator.state_dict().items()}
        results.append((game, moved))
    (both, moved), (first, by_reasoning), (second, by_perception) = results
    assert both.ties[0].tolist() == [[True, False], [False, True]]
    assert both.metrics["disc/ties_perception"] == both.metrics["disc/ties_reasoning"] == 0.5
    assert both.metrics["disc/pair_accuracy_reasoning"] in (0.0, 1.0)
    for metric, other in (("perception", second), ("reasoning", first)):
        name = f"disc/pair_accuracy_{metric}"
        assert both.metrics[name] == other.metrics[name]
    for name, source in (("perception_head", by_perception), ("reasoning_head", by_reasoning)):
        torch.testing.assert_close(moved[name], source[name], rtol=1e-4, atol=1e-6)
    all_tied = [JudgedPrompt(prompt, TEACHER, (TEACHER,))]
    discriminator = woken(backbone, config)
    optimizer = make_optimizer(list(discriminator.parameters()), config.optim)
    game = discriminator_step(
        backbone, discriminator, optimizer, all_tied, config, learning_rate=1.0, max_grad_norm=1.0
    )
    assert game.metrics["disc/loss"] == 0 and game.metrics["disc/grad_norm"] == 0
    assert "disc/pair_accuracy_perception" not in game.metrics


def test_ties_are_of_the_text_that_is_read():
    same_reasoning = dataclasses.replace(TEACHER, caption="- another")
    item = JudgedPrompt(None, TEACHER, (same_reasoning, TEACHER))  # type: ignore[arg-type]
    for sees_caption, expected in ((True, (False, False)), (False, (False, True))):
        config = dataclasses.replace(CONFIG, reasoning_sees_caption=sees_caption)
        assert item.ties(config) == [expected, (True, True)]


def test_the_gate_reads_the_untrained_probe_of_the_run(play, micro_run):
    """`play` has no metrics of the warm-up unless they are copied: unknown is not a pass."""
    _, finished, _, _ = micro_run
    with pytest.raises(ValueError, match=r"unknown untrained.*align\.gate=warn"):
        play(run_align, align__gate="stop", align__steps=1)
    lines = [m for m in read_jsonl(finished / "metrics.jsonl") if m["stage"] == "warmup"]
    assert sum("disc/grounding_reasoning_untrained" in line for line in lines) == 1


def test_the_gate_may_be_changed_when_a_run_is_resumed(micro_run, tmp_path):
    _, finished, _, _ = micro_run
    shutil.copytree(finished, tmp_path / "r")
    check_same_settings(tmp_path / "r", micro_recipe(align__gate="stop"))
    with pytest.raises(ValueError, match=r"align\.early_stop"):
        check_same_settings(tmp_path / "r", micro_recipe(align__early_stop=True))


@pytest.mark.parametrize("early_stop", [False, True])
def test_alignment_names_a_discriminator_that_loses_and_ends_if_asked(
    play, monkeypatch, early_stop
):
    result = PairResult((0.4, 0.3), (1.0, 1.0), (6, 6))
    monkeypatch.setattr("prism_lite.stages.game.heldout_pairs", lambda *_: result)
    _, folder, lines = play(
        run_align, align__steps=6, align__panel_every=1, align__early_stop=early_stop
    )
    alarmed = [m["step"] for m in lines if "alarms/losing_discriminator" in m]
    assert alarmed == ([2] if early_stop else [2, 3, 4, 5])
    assert steps_of(lines) == list(range(3 if early_stop else 6))
    assert "alarm losing_discriminator in align step 2" in play.text
    assert load_file(folder / "stages/align/final/policy.safetensors")


def test_an_alignment_that_ends_early_is_evaluated_at_its_end(play, monkeypatch):
    result = PairResult((0.4, 0.3), (1.0, 1.0), (6, 6))
    monkeypatch.setattr("prism_lite.stages.game.heldout_pairs", lambda *_: result)
    _, folder, lines = play(
        run_align,
        align__steps=6,
        align__panel_every=1,
        align__early_stop=True,
        eval__every=2,
        eval__keep="best",
    )
    assert [m["step"] for m in lines if "eval/accuracy" in m] == [1, 2]
    (choice,) = json.loads((folder / "results.json").read_text())["kept"].values()
    assert [step for step, _ in choice["evaluations"]] == [1, 2]
