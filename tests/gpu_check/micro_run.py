"""The micro pipeline on a device: all stages, killed and resumed, merged, asked a question."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

STEPS = {
    "save_every": 2, "sft__steps": 3, "warmup__steps": 3, "align__steps": 3, "rlvr__steps": 3,
    "rlvr__game": "on", "rlvr__kl_weight": 0.01, "rlvr__dynamic_sampling": True,
    "rlvr__max_sampled_batches": 2, "align__panel_every": 2, "data__num_heldout": 4,
    "model__gradient_checkpointing": True,
}  # fmt: skip


def micro_facts(device: str, dtype: str, backend: str) -> Iterator[Mapping[str, Any]]:
    """Yield the figures of a micro run.

    Args:
        dtype: "auto" takes that of the device.
    """
    from prism_lite.config import ModelConfig
    from prism_lite.models.device import card_of
    from prism_lite.models.load_unsloth import import_first, note_check_passed

    import_first(ModelConfig(backend=backend, device=device))  # before transformers
    import torch

    from prism_lite import pipeline
    from prism_lite.data.task import load_task
    from prism_lite.deploy.chat import answer
    from prism_lite.deploy.export import export_merged
    from prism_lite.deploy.load import load_stage
    from prism_lite.files import read_jsonl
    from prism_lite.runs.checkpoint import load_final
    from tests.make_micro_base import put_micro_base
    from tests.micro import micro_recipe, quiet_console

    config = micro_recipe(
        model__device=device, model__compute_dtype=dtype, model__backend=backend, **STEPS
    )
    console = quiet_console()
    with (
        tempfile.TemporaryDirectory() as parent,
        mock.patch.dict(os.environ, PRISM_LITE_CACHE=f"{parent}/cache"),
    ):
        (Path(parent) / "cache").mkdir()
        put_micro_base(Path(parent) / "cache")
        out = Path(parent) / "run"
        started_s = time.perf_counter()
        results = pipeline.run(config, out, console=console)
        yield {"run_s": round(time.perf_counter() - started_s, 1)}
        policy = load_final(out / "stages" / "rlvr")["policy"]
        shutil.rmtree(out / "stages" / "rlvr" / "final")
        pipeline.run(config, out, console=console)
        resumed = load_final(out / "stages" / "rlvr")["policy"]
        difference = max(float((policy[n] - resumed[n]).abs().max()) for n in policy)
        yield {"resumed_difference": difference}
        record = export_merged(out, f"{parent}/merged", bound=10.0, console=console)
        backbone = load_stage(out, config, "rlvr")
        question = load_task(config).heldout[0]
        text = answer(backbone, question, temperature=0.0, max_tokens=8, streamer=_Silent())
        lines = read_jsonl(out / "metrics.jsonl")
        peaks = [line["mem/peak_gib"] for line in lines if "mem/peak_gib" in line]
        card = card_of(config.model)
        yield {
            "precision": backbone.precision.reason,
            "loader": backbone.loader,
            "format_rates": {k: v["format_rate"] for k, v in results["stages"].items()},
            "skipped_steps": sum(line.get("skipped_steps", 0.0) for line in lines),
            "peak_gib": round(max(peaks), 3),
            "merged_nats": record["merged_against_base_and_adapter"]["largest"],
            "answer": text,
        }
    if device == "cpu" and difference:
        raise RuntimeError(f"the resumed policy differs by {difference} on the CPU")
    if not all(torch.isfinite(tensor).all() for tensor in resumed.values()):
        raise RuntimeError("the trained policy is not finite")
    if backend == "unsloth" and card is not None:
        if "loaded by Unsloth" not in backbone.loader:
            raise RuntimeError(backbone.loader)
        yield {"noted": str(note_check_passed(card))}  # model.backend=auto takes it from now on


class _Silent:
    """A streamer that prints nothing."""

    def put(self, _tokens: Any) -> None: ...
    def end(self) -> None: ...
