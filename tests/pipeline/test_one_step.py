"""How many files one alignment step enters: what a reader of it has to open."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import prism_lite
from prism_lite.runs.folder import RunFolder
from prism_lite.stages.align import run_align

REPOSITORY = Path(prism_lite.__file__).parents[1]
# 34, the game that alignment and RLVR share, the task and its verifier for the AUC of the scores; the token
# step that a card records, what is between its products, and whether dense weights fit; how far the policy
# is from its start; the processes that share the work; the alarms, which only report, count as one, as do
# the files of the run folder.
MOST_FILES = 43
ROOMS_THAT_COUNT_AS_ONE = ("prism_lite/stages/alarms/", "prism_lite/runs/")


def test_one_alignment_step_enters_few_files(play, monkeypatch):
    entered: dict[str, set[str]] = defaultdict(set)
    steps = RunFolder.steps

    def profile(frame: Any, event: str, _argument: Any) -> None:
        if event == "call":
            entered[frame.f_code.co_filename].add(frame.f_code.co_qualname)

    def traced(self: RunFolder, *arguments: Any) -> Any:
        for step in steps(self, *arguments):
            sys.setprofile(profile if step == 1 else None)
            yield step
            sys.setprofile(None)

    monkeypatch.setattr(RunFolder, "steps", traced)
    play(run_align, align__steps=3, align__panel_every=100)
    rooms = ("prism_lite", "triton_kernels")
    paths = [
        str(Path(name).relative_to(REPOSITORY))
        for name in entered
        if any(Path(name).is_relative_to(REPOSITORY / room) for room in rooms)
    ]
    files = sorted({next(filter(path.startswith, ROOMS_THAT_COUNT_AS_ONE), path) for path in paths})
    assert "prism_lite/stages/align.py" in files and "prism_lite/policy/step.py" in files
    assert len(files) <= MOST_FILES, f"{len(files)} files: {', '.join(files)}"
