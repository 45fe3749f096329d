"""The notebook's code cells, run in order on the CPU with a micro model; Colab's calls are stubs."""

from __future__ import annotations

import ast
import shlex
import sys
import types
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import nbformat
import pytest

from tests.micro import MICRO

NOTEBOOK = Path(__file__).parents[2] / "demo" / "colab.ipynb"


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


class Drive(types.ModuleType):
    """A google.colab.drive that mounts nothing and remembers what it was asked to mount."""

    mounted: list[str]

    def mount(self, place: str) -> None:
        self.mounted.append(place)


def run_cells(
    cells: list[str],
    values: dict[str, Any],
    commands: list[tuple[str, ...]],
    colab: types.ModuleType,
) -> dict[str, Any]:
    """Execute cells in one namespace, form values replaced, `prism` called in this process."""
    from prism_lite.__main__ import main

    namespace: dict[str, Any] = {"__name__": "notebook"}

    def prism(*arguments: str) -> None:
        commands.append(arguments)
        if arguments[0] in ("plan", "export", "doctor", "eval"):
            return  # these commands have tests of their own; below is one that they exist
        assert main(arguments) == 0

    for source in cells:
        lines = []
        for line in source.splitlines():
            name = line.partition(" =")[0]
            lines.append(f"{name} = {values[name]!r}" if name in values else line)
        source = "\n".join(lines)
        if "def prism(" in source:
            source = source.replace('prism("doctor")', "")
        # only while this cell runs: libraries also look for Colab and behave differently there
        is_drive = "google.colab" in source
        stub = mock.patch.dict(sys.modules, {"google.colab": colab}) if is_drive else nullcontext()
        with stub:
            exec(compile(source, str(NOTEBOOK), "exec"), namespace)
        if "def prism(" in source:
            namespace["prism"] = prism
    return namespace


@pytest.mark.slow
def test_all_cells_run_twice_and_the_second_time_resume_from_drive(
    micro_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[2]
    drive = Drive("google.colab.drive")
    drive.mounted = []
    colab = types.ModuleType("google.colab")
    monkeypatch.setattr(colab, "drive", drive, raising=False)
    monkeypatch.chdir(root)
    on_drive, first, second = tmp_path / "drive", tmp_path / "one", tmp_path / "two"
    extra = " ".join(shlex.quote(f"{key}={value}".replace("'", "")) for key, value in MICRO.items())
    values = {"EXTRA": extra, "RUN": "first", "RECIPE": "tiny", "USE_DRIVE": True}
    folders = {"/content/drive/MyDrive/prism_lite": str(on_drive)}

    def cells_for(place: Path) -> list[str]:
        cells = [
            cell.replace('Path("runs").resolve()', f"Path({str(place)!r})") for cell in code_cells()
        ]
        for old, new in folders.items():
            cells = [cell.replace(old, new) for cell in cells]
        return cells

    commands: list[tuple[str, ...]] = []
    namespace = run_cells(cells_for(first), values, commands, colab)
    assert drive.mounted == ["/content/drive"]
    assert [c[0] for c in commands] == [
        "plan", "sft", "warmup", "align", "rlvr", "eval", "export",
    ]  # fmt: skip
    trained = (first / "first" / "policy" / "adapter_model.safetensors").read_bytes()
    assert (on_drive / "first" / "policy" / "adapter_model.safetensors").read_bytes() == trained
    assert namespace["results"]["stages"].keys() == {"base", "sft", "align", "rlvr"}

    lines = (first / "first" / "metrics.jsonl").read_text()
    run_cells(cells_for(second), values, [], colab)  # a new machine: only the Drive is left
    assert (second / "first" / "metrics.jsonl").read_text() == lines  # nothing trained again


def test_every_command_of_the_notebook_exists() -> None:
    from prism_lite.__main__ import main

    for name in ("doctor", "sft", "warmup", "align", "rlvr", "eval", "plan", "export", "demo"):
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0, name
