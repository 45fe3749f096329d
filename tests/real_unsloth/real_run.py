"""A whole micro run through one loader, in a process of its own: `real_run.py BACKEND OUT`.

Unsloth refuses a machine without a GPU. `pretend_to_have_a_card` is what it takes to run all of it that is
not a Triton kernel on the CPU; tests only, and only here: it patches torch for the whole process. What of
Unsloth is switched off is not said here but in `load_unsloth.ENVIRONMENT`: a run has the same.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import types
from pathlib import Path


def pretend_to_have_a_card() -> None:
    """Import Unsloth as if there were a Tesla T4."""
    os.environ |= {
        "UNSLOTH_ALLOW_CPU": "1",
        "UNSLOTH_COMPILE_LOCATION": tempfile.mkdtemp(),
        "HF_HUB_OFFLINE": "1",
    }
    from prism_lite.models import load_unsloth

    unsloth = load_unsloth.import_unsloth()
    import torch
    import unsloth.models.loader as loader
    import unsloth.models.vision as vision

    card = types.SimpleNamespace(
        total_memory=16 << 30, major=7, minor=5, name="pretended", multi_processor_count=10,
        is_integrated=False,
    )  # fmt: skip
    torch.cuda.get_device_properties = lambda *_a, **_k: card
    torch.cuda.get_device_capability = lambda *_a, **_k: (7, 5)
    vision.get_device_stats = lambda *_a, **_k: ("pretended", "", 16.0)
    loader.ALLOW_BITSANDBYTES = True
    from prism_lite.models.processor import ImageOnlyProcessor

    vision.AutoProcessor = types.SimpleNamespace(  # the stock one needs torchvision
        from_pretrained=lambda path, **_settings: ImageOnlyProcessor.from_pretrained(path)
    )
    load_unsloth.choose_backend = lambda _model, _card: ("unsloth", f"loaded by {unsloth.__name__}")


def main(backend_name: str, out: str) -> None:
    if backend_name == "unsloth":
        pretend_to_have_a_card()
    import torch
    from bitsandbytes.nn import Linear4bit

    from prism_lite import pipeline
    from prism_lite.deploy import export
    from prism_lite.deploy.load import load_stage
    from prism_lite.models import backbone as backbone_module
    from prism_lite.models import load_unsloth
    from tests.micro import micro_recipe, quiet_console

    backbone_module.choose_backend = load_unsloth.choose_backend
    torch.set_num_threads(1)
    steps = {"sft__steps": 4, "warmup__steps": 3, "align__steps": 3, "rlvr__steps": 3}
    steps["align__gate"] = "warn"
    config = micro_recipe(**steps)
    console = quiet_console()
    before = set(os.listdir("."))
    results = pipeline.run(config, out, console=console)
    backbone = load_stage(out, config, "rlvr")
    linears = [n for n, m in backbone.core.named_modules() if type(m) is Linear4bit]
    record = export.export_merged(out, f"{out}-merged", bound=10.0, console=console)
    facts = {
        "printed": console.file.getvalue(),
        "num_nf4_linears": len(linears),
        "nf4_in_vision": sum("visual" in name for name in linears),
        "stages": sorted(results["stages"]),
        "merged_against_base_and_adapter": record["merged_against_base_and_adapter"],
        "unsloth": "unsloth" in sys.modules,
        "new_files_here": sorted(set(os.listdir(".")) - before),
    }
    Path(f"{out}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
