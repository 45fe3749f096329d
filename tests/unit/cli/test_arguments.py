"""What the arguments alone show to be wrong is refused before torch is imported."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prism_lite import __main__, files, version
from prism_lite.__main__ import main
from prism_lite.recipe import load_recipe

_WITHOUT_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "peft"):
            raise SystemExit(f"imported {name}")
sys.meta_path.insert(0, NoTorch())
from prism_lite.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def refused(*arguments: str, cwd: Path) -> str:
    """The one sentence with which a command is refused without torch."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH, *arguments],
        cwd=cwd, env=os.environ | {"PYTHONPATH": str(Path(__main__.__file__).parents[1])},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("align.grup_size=8", "align.group_size"),
        ("--recipe nope", "no recipe 'nope'"),
        ("data.train=rows.jsonl", "data.task=files"),
        ("data.heldout=rows.jsonl", "data.task=files"),
        ("data.task=files", "data.train is not set"),
        ("data.task=files data.train=no.jsonl", "no.jsonl does not exist"),
        ("data.task=files data.train=rows.jsonl data.heldout=no.jsonl", "data.heldout"),
        ("data.task=files data.train=rows.jsonl data.image_root=nowhere", "data.image_root"),
        ("sft.start_from=/no/adapter", "sft.start_from"),
        ("sft.start_from=runs/mine/policy", "sft.start_from"),
        ("model.name=/no/model", "model.name"),
        ("rlvr.rewards.no/file.py:score=1", "does not exist"),
        ("--out /proc/x", "cannot be created or written"),
        (f"--out {'x' * 300}", "cannot be created"),
        ("--out rows.jsonl/run", "is a file"),
        ("align.dpo_beta=0.2", "align.method=dpo"),
        ("eval.num_inside=8", "eval.every"),
        ("rlvr.judge.model=x", "rlvr.rewards.judge"),
        ("tiny.steps=5 model.name=owner/name", "model.name=tiny"),
    ],
)
def test_refused_before_torch(tmp_path, arguments, words):
    (tmp_path / "rows.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    assert words in refused("run", *arguments.split(), cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_another_system_is_one_sentence(platform, monkeypatch, capsys):
    monkeypatch.setattr(__main__.sys, "platform", platform)
    assert main(["doctor"]) == 2
    assert "Linux and WSL2" in capsys.readouterr().err


def test_the_version_names_the_commit(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("prism-lite ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EACCES, errno.EROFS])
def test_trouble_of_the_machine_is_one_sentence(number, monkeypatch, capsys):
    def fails(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number), "/there")

    monkeypatch.setattr("prism_lite.cli.settings.all_settings", fails)
    assert main(["settings"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"prism-lite: /there: {os.strerror(number)}; ")
    assert len(error.splitlines()) == 1


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    def fails(*_arguments: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file", "/forgotten")

    monkeypatch.setattr("prism_lite.cli.settings.all_settings", fails)
    with pytest.raises(FileNotFoundError):
        main(["settings"])


def test_the_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("PRISM_LITE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / "prism_lite"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert files.cache_folder() == Path.home() / ".cache" / "prism_lite"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRISM_LITE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match="PRISM_LITE_CACHE"):
        files.make_cache_folder()


def test_paths_are_absolute(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    config = load_recipe(
        "tiny", ["data.task=files", "data.train=rows.jsonl#5", "data.heldout=owner/name"]
    )
    assert config.data.train == f"{tmp_path / 'rows.jsonl'}#5"
    assert config.data.heldout == "owner/name"


@pytest.mark.parametrize(
    ("installed", "is_old"), [(None, False), ("0.15.0", True), ("0.16.0", False), ("1.0", False)]
)
def test_an_old_torchao_is_named(installed, is_old, monkeypatch):
    monkeypatch.setattr(version, "installed_version", lambda _name: installed)
    trouble = version.torchao_trouble()
    assert (trouble is not None) == is_old
    assert not is_old or "pip uninstall torchao" in str(trouble)


def test_an_old_torchao_stops_a_merge_before_anything_is_imported(monkeypatch, capsys):
    monkeypatch.setattr(version, "installed_version", lambda _name: "0.10.0")
    assert main(["export", "--run", "nowhere", "--merge", "--out", "x"]) == 2
    assert "pip uninstall torchao" in capsys.readouterr().err
