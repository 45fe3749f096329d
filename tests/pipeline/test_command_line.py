"""The command line: exit codes and messages."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from prism_lite import pipeline
from prism_lite.cli import doctor
from prism_lite.models import device
from prism_lite.models.device import Card
from prism_lite.recipe import recipe_names, to_dict
from tests.micro import micro_recipe
from tests.pipeline.commands import REPOSITORY, check_refused, in_process, prism_lite


@pytest.fixture
def recipe(micro_cache, tmp_path):
    """The micro recipe as a file."""
    file = tmp_path / "micro.yaml"
    file.write_text(yaml.safe_dump(to_dict(micro_recipe())))
    return file


def child_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_help_takes_less_than_a_fifth_of_a_second():
    seconds = []
    for _ in range(3):
        before = child_cpu_s()  # not the wall time: other processes may use the core
        done = prism_lite("--help")
        seconds.append(child_cpu_s() - before)
    assert done.returncode == 0
    for command in ("run", "sft", "warmup", "align", "rlvr", "eval", "doctor", "demo", "plan"):
        assert f"\n    {command} " in done.stdout
    assert min(seconds) < 0.2


def test_help_imports_nothing_heavy():
    code = (
        "import sys, contextlib\n"
        "from prism_lite.__main__ import main\n"
        "with contextlib.suppress(SystemExit): main(['run', '--help'])\n"
        "heavy = ('torch', 'transformers', 'peft', 'numpy', 'PIL', 'rich', 'yaml', 'pydantic')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_dry_run_prints_settings_that_load_again(tmp_path):
    out = tmp_path / "out"
    done = prism_lite(
        "run", "--out", out, "--seed", 5, "--dry-run", "--align.group_size", 4, "rlvr.steps=7"
    )
    assert done.returncode == 0, done.stderr
    values = yaml.safe_load(done.stdout)
    assert (values["seed"], values["align"]["group_size"], values["rlvr"]["steps"]) == (5, 4, 7)
    same = prism_lite("run", "--dry-run", "--seed=5", "--align.group_size=4", "--rlvr.steps", 7)
    assert same.stdout == done.stdout
    assert not out.exists()


def test_the_thread_spin_is_set_unless_the_user_has_set_it():
    code = "import os, prism_lite; print(os.environ.get('GOMP_SPINCOUNT'))"
    for environment, expected in (
        ({}, "20000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "None"),
    ):
        clean = {
            k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            env=clean | environment,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("align.grup_size=8",), ("align.grup_size", "align.group_size")),
        (("--align.group_size", "many"), ("align.group_size", "many")),
        (("align.group_size=1",), ("align.group_size",)),
        (("--recipe", "no-such-recipe"), ("no-such-recipe", "tiny")),
        (("nonsense",), ("nonsense",)),
        (("data.task=files",), ("data.train",)),
        (("data.task=files", "data.train=/no/such/rows.jsonl"), ("/no/such/rows.jsonl",)),
        (("model.name=/no/such/model",), ("/no/such/model",)),
    ],
)
def test_wrong_arguments_are_one_sentence_and_exit_code_2(recipe, tmp_path, arguments, words):
    out = tmp_path / "out"
    base = () if "--recipe" in arguments else ("--recipe", recipe)
    done = in_process("run", *base, "--out", out, *arguments)
    check_refused(done, *words)
    assert not out.exists(), sorted(p.name for p in out.iterdir())


@pytest.mark.parametrize("arguments", ["align.grup_size=8", "model.name=/no/such/model"])
def test_a_wrong_setting_in_a_process_of_its_own(recipe, tmp_path, arguments):
    done = prism_lite("run", "--recipe", recipe, "--out", tmp_path / "out", arguments)
    check_refused(done, arguments.partition("=")[0])


@pytest.mark.parametrize("arguments", [(), ("runn",), ("run", "--seed", "x"), ("eval",)])
def test_a_command_that_cannot_be_parsed_exits_2(arguments):
    with pytest.raises(SystemExit) as stop:
        in_process(*arguments)
    assert stop.value.code == 2


def completion(digits: str, answer: str) -> str:
    return (
        f"<caption>- digits: {digits}</caption>\n"
        f"<think>first {digits[0]},last {digits[-1]},so {answer}</think>\n"
        f"<answer>{answer}</answer>"
    )


COLUMNS = (
    "{id: id, images: image, prompt: question, answer: answer, "
    "demonstration: demonstration, teacher: teacher}"
)


def write_rows(folder: Path, num: int) -> Path:
    rows = []
    for i in range(num):
        name = f"picture-{i}.png"
        Image.new("RGB", (64, 32), (20 * i % 255, 80, 120)).save(folder / name)
        rows.append(
            {
                "id": f"row-{i}",
                "image": name,
                "question": "Is the first digit greater than the last?",
                "answer": "no",
                "demonstration": completion("3,7", "no"),
                "teacher": completion("2,7", "no"),
            }
        )
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_an_empty_data_file(recipe, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    out = tmp_path / "out"
    done = in_process(
        "run", "--recipe", recipe, "--out", out, "data.task=files", f"data.train={empty}"
    )
    check_refused(done, "empty.jsonl")
    assert not out.exists()


@pytest.mark.parametrize("damage", ["missing", "unreadable"])
def test_a_picture_that_cannot_be_read(recipe, tmp_path, damage):
    rows = write_rows(tmp_path, 6)
    picture = tmp_path / "picture-4.png"
    picture.unlink()
    if damage == "unreadable":
        picture.write_bytes(b"no picture at all")
    out = tmp_path / "out"
    done = in_process(
        "run", "--recipe", recipe, "--out", out, "data.task=files", f"data.train={rows}"
    )
    check_refused(done, "picture-4.png")
    assert not out.exists()


def test_the_files_task_trains(recipe, tmp_path):
    rows = write_rows(tmp_path, 8)
    out = tmp_path / "out"
    done = in_process(
        "sft", "--recipe", recipe, "--out", out, "data.task=files", f"data.train={rows}",
        f"data.heldout={rows}", "sft.steps=1", f"data.columns={COLUMNS}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((out / "results.json").read_text())
    assert results["task"] == "files" and results["n"] == 8
    assert "caption_accuracy" not in results["stages"]["sft"], "nothing can verify it here"
    assert json.loads((out / "env.json").read_text())["data"]["train"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", [n for n in recipe_names() if not n.startswith("tiny")])
def test_a_gpu_recipe_without_a_gpu(tmp_path, name):
    out, rows = tmp_path / "out", tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1+1?", "answer": "2"}\n')
    done = in_process("run", "--recipe", name, "--out", out, f"data.train={rows}")
    check_refused(done, name, "GPU")
    assert not out.exists()


def test_eval_of_a_folder_without_a_run(tmp_path):
    check_refused(in_process("eval", "--run", tmp_path), str(tmp_path))


def test_eval_gives_the_figures_of_the_run(micro_run):
    _, folder, results, _ = micro_run
    done = in_process("eval", "--run", folder, "--stage", "rlvr", "--show", 2)
    assert done.returncode == 0, done.stderr
    assert f"{results['stages']['rlvr']['accuracy']:.3f}" in done.stdout
    assert json.loads((folder / "results.json").read_text()) == results


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_unsloth_without_a_gpu_is_replaced_and_the_reason_printed(recipe, tmp_path):
    done = in_process(
        "sft", "--recipe", recipe, "--out", tmp_path / "out", "--backend", "unsloth", "sft.steps=0"
    )
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.split())
    assert (
        "model.backend = unsloth is not possible: it needs an NVIDIA GPU and there is none; loaded by "
        "transformers + bitsandbytes instead"
    ) in printed


def test_doctor_names_device_and_packages():
    done = prism_lite("doctor")
    assert done.returncode == 0, done.stderr
    for word in ("torch", "transformers", "bitsandbytes", "gpu", "cores", "compute", "loaded by"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (None, ["tiny", "tiny-files"]),
        (Card("Tesla T4", (7, 5), 14.7), ["t4-2b", "t4-4b", "tiny", "tiny-files"]),
        (
            Card("RTX 4090", (8, 9), 23.6),
            ["rtx3060-2b", "rtx4090-4b", "rtx4090-8b", "t4-2b", "t4-4b", "tiny", "tiny-files"],
        ),
    ],
)
def test_doctor_names_the_recipes_that_would_start_here(card, expected, monkeypatch):
    monkeypatch.setattr(device, "card_of", lambda _model: card)
    assert doctor.recipes_for_this_machine() == expected


@pytest.mark.parametrize("command", ["doctor", "demo", "data check rows.jsonl"])
def test_settings_are_refused_by_commands_without_settings(command):
    name = command.split()[0]
    check_refused(in_process(*command.split(), "seed=3"), f"{name} takes no settings, got 'seed=3'")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("export", "--discriminator", "--gguf", "f16"), "--gguf is about merged weights"),
        (("export", "--discriminator", "--bound", 1), "--bound is about merged weights"),
        (("export", "--merge", "--public"), "--public is about the repository of --push"),
        (("chat", "--temperature", -1, "what?"), "--temperature -1: expected 0 or more"),
        (("chat", "--max-tokens", 0, "what?"), "--max-tokens 0: expected 1 or more"),
        (("chat", __file__), "the last argument is the question"),
    ],
)
def test_arguments_that_do_not_belong_together(arguments, words, tmp_path):
    out = ["--out", tmp_path / "out"] if arguments[0] == "export" else []
    check_refused(in_process(arguments[0], "--run", tmp_path, *out, *arguments[1:]), words)


def test_a_fault_inside_a_library_keeps_its_traceback(monkeypatch):
    """Only our own ValueErrors have messages for the user."""
    monkeypatch.setattr(doctor, "describe", lambda: json.loads("{"))
    with pytest.raises(ValueError, match="Expecting property name"):
        in_process("doctor")


def test_a_fault_of_a_builtin_in_our_code_keeps_its_traceback(monkeypatch):
    code = compile("def describe(): return int('x')", doctor.__file__, "exec")
    names = {"__name__": "prism_lite.cli.doctor"}
    exec(code, names)
    monkeypatch.setattr(doctor, "describe", names["describe"])
    with pytest.raises(ValueError, match="invalid literal"):
        in_process("doctor")


def test_an_interrupt_outside_the_stages_prints_how_to_resume(recipe, tmp_path, monkeypatch):
    def interrupt(*_arguments, **_named):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", interrupt)
    done = in_process("run", "--recipe", recipe, "--out", tmp_path / "out")
    assert done.returncode == 3
    resumed = f"interrupted; resume with: prism-lite run --recipe {recipe} --out {tmp_path / 'out'}"
    assert done.stdout.strip() == resumed


def test_out_that_cannot_be_made(recipe, tmp_path):
    (tmp_path / "file").write_text("mine")
    done = in_process("run", "--recipe", recipe, "--out", tmp_path / "file" / "run")
    check_refused(done, "file is a file")


def test_data_check_takes_a_column_map(tmp_path):
    rows = write_rows(tmp_path, 3)
    rows.write_text(rows.read_text().replace('"question"', '"ask"').replace('"answer":', '"key":'))
    columns = COLUMNS.replace("question", "ask").replace("answer: answer", "answer: key")
    assert in_process("data", "check", rows).returncode == 2
    done = in_process("data", "check", rows, "--columns", columns)
    assert done.returncode == 0 and "3 rows, 3 clean" in done.stdout
    check_refused(in_process("data", "check", rows, "--columns", "prompt"), "--columns")


def change_row(rows: Path, number: int, **fields: str) -> None:
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    lines[number].update(fields)
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"teacher": "<caption>a</caption><answer>no</answer>"}, "teacher"),
        ({"question": "Is it? " * 400}, "model.max_prompt_tokens"),
    ],
)
def test_a_row_that_would_stop_a_later_stage_is_refused_at_once(recipe, tmp_path, fields, word):
    rows, out = write_rows(tmp_path, 6), tmp_path / "out"
    change_row(rows, 4, **fields)
    command = (
        "sft", "--recipe", recipe, "--out", out, "data.task=files", f"data.train={rows}",
        f"data.columns={COLUMNS}", "model.max_prompt_tokens=600", "sft.steps=1",
    )  # fmt: skip
    check_refused(in_process(*command), "rows.jsonl, line 5", word)
    assert not out.exists()
    done = in_process(*command, "data.on_bad_row=skip")
    assert done.returncode == 0, done.stderr
    assert "skipped" in done.stdout and (out / "stages" / "sft" / "final").is_dir()


def test_the_readmes_way_without_alignment(recipe, tmp_path):
    """The two commands of the README; the settings of a stage that has begun cannot change."""
    common = ("--recipe", recipe, "--out", tmp_path / "out")
    done = in_process("sft", *common, "sft.steps=1")
    assert done.returncode == 0, done.stderr
    begun = in_process("rlvr", *common, "sft.steps=2", "rlvr.start=sft", "rlvr.steps=1")
    check_refused(begun, "sft.steps = 1", "now it is 2")
    done = in_process("rlvr", *common, "sft.steps=1", "rlvr.start=sft", "rlvr.steps=1")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["stages"]) == {"base", "sft", "rlvr"}
    earlier = in_process("align", *common, "sft.steps=1", "align.steps=2", "rlvr.start=sft",
                         "rlvr.steps=1")  # fmt: skip
    check_refused(earlier, "align.steps")


def test_out_of_memory_is_one_sentence_and_exit_code_1(monkeypatch, recipe, tmp_path):
    def fails(*_arguments: object, **_others: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("prism_lite.run_results.evaluate", fails)
    done = in_process("sft", "--recipe", recipe, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "prism-lite: out of memory in the evaluation of stage base" in done.stderr
    assert "model.max_pack_tokens=256" in done.stderr and "prism-lite plan" in done.stderr
    assert "model.gradient_checkpointing" in done.stderr and "Traceback" not in done.stderr
