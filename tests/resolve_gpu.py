"""Does `pip install .[gpu]` resolve today? `make resolve-gpu` asks pip and installs nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
SHOWN = (
    "unsloth", "unsloth_zoo", "torch", "torchvision", "triton", "transformers", "trl", "peft",
    "bitsandbytes", "accelerate", "datasets", "tokenizers", "huggingface_hub", "xformers", "gradio",
)  # fmt: skip


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet",
            "--report", str(report), f"{REPOSITORY}[gpu,demo]",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"the GPU set does not resolve:\n{done.stderr.strip()[-3000:]}", file=sys.stderr)
            return 1
        versions = resolved(json.loads(report.read_text(encoding="utf-8")))
    print(f"the GPU set resolves: {len(versions)} packages, among them")
    print("\n".join(f"{name}=={versions[name]}" for name in SHOWN if name in versions))
    return 0


def resolved(report: Mapping[str, Any]) -> dict[str, str]:
    """Versions by name from pip's installation report."""
    found = (item["metadata"] for item in report["install"])
    return {item["name"].lower().replace("-", "_"): item["version"] for item in found}


if __name__ == "__main__":
    sys.exit(main())
