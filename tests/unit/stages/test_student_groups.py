"""What is advised where SFT has not learned the format: a run that is given the advice is a longer one."""

from __future__ import annotations

import shlex
from types import SimpleNamespace

import pytest

from prism_lite.files import write_json
from prism_lite.recipe import load_recipe
from prism_lite.stages.student_groups import _longer_sft


def advice(folder, recipe: str, num_well_formed: int, **settings) -> str:
    config = load_recipe(recipe, settings)
    words = ["prism-lite", "run", "--recipe", recipe, "--out", "runs/own"]
    write_json(folder / "env.json", {"command": shlex.join(words)})
    run = SimpleNamespace(path=folder, config=config)
    return _longer_sft(SimpleNamespace(config=config, run=run), num_well_formed)  # type: ignore[arg-type]


@pytest.mark.parametrize(("num_well_formed", "steps"), [(0, 2000), (3, 1000)])
def test_far_more_steps_where_no_sample_is_well_formed(tmp_path, num_well_formed, steps):
    text = advice(tmp_path, "t4-2b", num_well_formed)
    assert "more sft.steps (now 500)" in text
    assert text.endswith(f"--out {tmp_path.parent / (tmp_path.name + '-2')} sft.steps={steps}")


def test_the_tiny_model_on_files_is_sent_to_the_recipe_that_learns_them(tmp_path):
    files = {"data.task": "files", "data.train": "rows.jsonl"}
    assert "--recipe tiny-files" in advice(tmp_path, "tiny", 0, **files)
    four_times = 4 * load_recipe("tiny-files").sft.steps
    assert f"sft.steps={four_times}" in advice(tmp_path, "tiny-files", 0, **files)
    assert "sft.steps=400" in advice(tmp_path, "tiny", 0), "the embedded task"
    # another base, as that of `prism-lite data easy-vqa --tiny`
    assert "sft.steps=400" in advice(tmp_path, "tiny", 0, **files, **{"model.name": "a/folder"})
