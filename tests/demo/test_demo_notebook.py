"""The notebook's code cells, run in order on the CPU with the tiny model, as a kernel runs them."""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

REPOSITORY = Path(__file__).parents[2]
NOTEBOOK = REPOSITORY / "demo" / "colab.ipynb"


def code_cells() -> list[str]:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_is_valid_and_holds_no_output() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.accelerator == "GPU" and notebook.metadata.colab.gpuType == "T4"
    assert "colab-badge.svg" in notebook.cells[0].source.splitlines()[0]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            assert cell.source.startswith("# @title ")
            ast.parse(cell.source)  # plain Python: runs in a script, on Kaggle and here


def test_the_recipes_offered_are_shipped() -> None:
    from prism_lite.recipe import recipe_names

    line = next(line for cell in code_cells() for line in cell.splitlines() if "RECIPE =" in line)
    offered = ast.literal_eval(line.split("@param")[1].strip())
    assert set(offered) - {"auto"} <= set(recipe_names())


# Only shorter: the tiny model, its recipe and every command are those that ship.
SHORTER = {
    "sft.steps": 4, "warmup.steps": 4, "warmup.num_prompts": 32, "warmup.num_probe": 8,
    "align.steps": 2, "align.gate": "warn", "rlvr.steps": 2, "rlvr.control": False, "save_every": 1,
    "eval.num_prompts": 8, "data.num_sft": 64, "data.num_align": 64, "data.num_rlvr": 64,
    "data.num_heldout": 8, "data.num_transfer": 8,
}  # fmt: skip
DRIVE = "/content/drive/MyDrive/prism_lite"


def program(values: dict[str, Any], replaced: dict[str, str], *, last: str = "") -> str:
    """Return the code cells as one program, with these form values and places.

    Args:
        last: title of the last cell that runs; default: all do.
    """
    lines, cells = [], code_cells()
    numbers = [number for number, cell in enumerate(cells) if last and last in cell.splitlines()[0]]
    assert len(numbers) == bool(last)
    for line in "\n".join(cells[: numbers[0] + 1] if last else cells).splitlines():
        name = line.partition(" =")[0]
        lines.append(f"{name} = {values[name]!r}" if name in values else line)
    text = "\n".join(lines)
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    return text


def run_program(text: str, place: Path, modules: Path | None = None) -> str:
    """Run a program as the notebook's kernel does: in a process of its own, in a folder of its own."""
    place.mkdir(exist_ok=True)
    (place / "notebook.py").write_text(text, encoding="utf-8")
    paths = [str(path) for path in (modules, os.environ.get("PYTHONPATH")) if path]
    done = subprocess.run(
        [sys.executable, "notebook.py"], cwd=place, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": "Agg"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def checkout_in(place: Path) -> None:
    """Put a checkout that is set up into a folder, as a clone beside the notebook."""
    place.mkdir()
    checkout = place / "prism_lite"
    checkout.mkdir()
    for name in ("prism_lite", "triton_kernels", "demo"):
        (checkout / name).symlink_to(REPOSITORY / name)
    (checkout / ".venv").mkdir()


@pytest.mark.slow
def test_every_cell_runs_and_a_new_session_resumes_from_drive(tmp_path: Path) -> None:
    """Nothing is stubbed but Colab's own module, whose Drive is a folder."""
    drive = tmp_path / "drive"
    modules = tmp_path / "modules"
    (modules / "google").mkdir(parents=True)
    (modules / "google" / "colab.py").write_text(
        "class drive:\n    mount = staticmethod(lambda place: print('mounted', place))\n"
    )
    extra = " ".join(f"{key}={json.dumps(value)}" for key, value in SHORTER.items())
    values = {"EXTRA": extra, "USE_DRIVE": True, "START_DEMO": True}
    text = program(values, {DRIVE: str(drive)})
    first, second = tmp_path / "one", tmp_path / "two"
    for place in (first, second):
        checkout_in(place)

    printed = run_program(text, first, modules)
    assert "mounted /content/drive" in printed
    assert "sft      accuracy" in printed
    assert "http://127.0.0.1" in printed  # the demo
    run = first / "runs" / "first"
    assert (run / "before_and_after.png").stat().st_size > 10_000
    assert (first / "runs" / "first-merged" / "config.json").is_file()
    results = json.loads((run / "results.json").read_text())
    assert results["stages"].keys() == {"base", "sft", "align", "rlvr"}
    kept = drive / "first"
    for name in ("policy/adapter_model.safetensors", "metrics.jsonl"):
        assert (kept / name).read_bytes() == (run / name).read_bytes()

    lines = (run / "metrics.jsonl").read_text()
    text = program(values, {DRIVE: str(drive)}, last="Figures and curves")
    printed = run_program(text, second, modules)
    assert "restored from" in printed and "sft      accuracy" in printed
    assert (second / "runs" / "first" / "metrics.jsonl").read_text() == lines  # nothing again


def test_a_machine_without_anything_to_install_is_told_so(tmp_path: Path) -> None:
    install = next(cell for cell in code_cells() if "ADDRESS =" in cell)
    text = "import os, subprocess\nfrom pathlib import Path\n" + install
    (tmp_path / "notebook.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "notebook.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "nothing to install: upload a wheel" in done.stderr


_NO_PIP = """
import os, subprocess
from pathlib import Path
from importlib import metadata
def version(name):
    if INSTALLED.get(name) is None: raise metadata.PackageNotFoundError(name)
    return INSTALLED[name]
metadata.version = version
def run(command, **_):
    print("RUN", *command[3:])
subprocess.run = run
class Popen:
    returncode, stdout = 0, ()
    def __init__(self, *_, **__): pass
    def __enter__(self): return self
    def __exit__(self, *_): return False
subprocess.Popen = Popen
"""


@pytest.mark.parametrize("torchao", ["0.10.0", "0.16.1", None])
def test_the_install_cell_keeps_what_the_machine_has(tmp_path: Path, torchao: str | None) -> None:
    """A wheel beside the notebook: installed with the machine's torch as a constraint."""
    (tmp_path / "prism_lite-0.1.0-py3-none-any.whl").touch()
    installed = {"torch": "2.11.0+cu130", "numpy": "2.1.0", "torchao": torchao}
    stand_in = f"INSTALLED = {installed!r}" + _NO_PIP
    install = next(cell for cell in code_cells() if "ADDRESS =" in cell)
    (tmp_path / "notebook.py").write_text(stand_in + install)
    done = subprocess.run(
        [sys.executable, "notebook.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    commands = [line for line in done.stdout.splitlines() if line.startswith("RUN")]
    wheel = tmp_path / "prism_lite-0.1.0-py3-none-any.whl"
    expected = [f"RUN install --quiet --constraint installed.txt {wheel}"]
    if torchao == "0.10.0":
        expected.insert(0, "RUN uninstall --quiet --yes torchao")
    assert commands == expected
    constraints = (tmp_path / "installed.txt").read_text().split()
    assert constraints == ["torch==2.11.0+cu130", "numpy==2.1.0"]


def test_a_card_without_a_file_trains_on_easy_vqa() -> None:
    cells = [cell for cell in code_cells() if "RECIPE =" in cell or "easy-vqa" in cell]
    commands: list[tuple[str, ...]] = []
    namespace: dict[str, Any] = {
        "gpu": "Tesla T4, 15360 MiB", "Path": Path, "shlex": shlex,
        "pip": lambda *arguments: commands.append(("pip", *arguments)),
        "prism": lambda *arguments: commands.append(arguments),
    }  # fmt: skip
    for cell in cells:
        exec(compile(cell, str(NOTEBOOK), "exec"), namespace)
    easy = Path("easy-vqa").resolve()
    assert commands == [
        ("pip", "install", "--quiet", "easy-vqa"),
        ("data", "easy-vqa", "--out", str(easy)),
    ]
    assert namespace["settings"][:2] == ["--recipe", "t4-2b"]
    assert f"data.heldout={easy / 'heldout.jsonl'}" in namespace["settings"]


def test_every_command_of_the_notebook_exists() -> None:
    from prism_lite.__main__ import main

    for name in ("doctor", "sft", "warmup", "align", "rlvr", "chat", "plan", "export", "data"):
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0, name
