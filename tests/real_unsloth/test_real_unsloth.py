"""Our own stages through the real Unsloth, on the CPU: `make test-unsloth`, in an environment of its own.

Executed: loading in NF4, adapters and their switching, packed forward with picture features, SFT,
warm-up with the discriminator's hooks, alignment, RLVR, sampling, checkpoints, the merged export. Not
executed, because they need a GPU: Unsloth's Triton kernels, its block compilation, its checkpoint
offload (both are switched off here and on a card) and vLLM.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prism_lite.files import read_jsonl

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("unsloth") is None,
    reason="Unsloth is not installed here: make test-unsloth runs this in an environment of its own",
)


def run(backend: str, folder: Path) -> dict:
    out = folder / backend
    done = subprocess.run(
        [sys.executable, REPOSITORY / "tests" / "real_unsloth" / "real_run.py", backend, out],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PRISM_LITE_CACHE": str(folder / "bases")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads(Path(f"{out}.json").read_text())


def test_every_stage_trains_through_the_real_unsloth(tmp_path):
    plain, real = run("transformers", tmp_path), run("unsloth", tmp_path)
    assert real["unsloth"] and not plain["unsloth"]
    assert "loaded by unsloth" in real["printed"]
    assert real["stages"] == ["align", "base", "rlvr", "sft"]
    assert real["num_nf4_linears"] == plain["num_nf4_linears"] == 14
    assert real["nf4_in_vision"] == plain["nf4_in_vision"] == 0
    assert real["new_files_here"] == ["unsloth", "unsloth-merged"], "generated code beside the run"
    exact = real["merged_against_base_and_adapter"]
    assert exact["largest"] <= exact["tolerance"]
    losses = {}
    for backend in ("transformers", "unsloth"):
        lines = read_jsonl(tmp_path / backend / "metrics.jsonl")
        losses[backend] = [line["loss"] for line in lines if line["stage"] == "sft"]
        assert {line["stage"] for line in lines} == {"sft", "warmup", "align", "rlvr"}
    assert losses["unsloth"] == pytest.approx(losses["transformers"], rel=1e-3)
