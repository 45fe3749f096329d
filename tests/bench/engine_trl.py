"""(b) A whole GRPO step of ours beside TRL's GRPOTrainer, turn by turn in one process."""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from prism_lite.config import OptimConfig
from prism_lite.models.backbone import Backbone
from prism_lite.models.optim import make_optimizer
from tests.bench.engine_cases import COMPLETION_TOKENS, GROUP_SIZE, forget_pictures, make_sample
from tests.bench.engine_measure import PeakMemory, median_ratio
from tests.bench.engine_parts import ours_grpo_step, reward_of


class _Turns(TrainerCallback):
    """Times TRL's steps and runs and times one of ours after each."""

    def __init__(self, ours: Any) -> None:
        self._ours = ours
        self.seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
        self.mib: dict[str, list[float]] = {"theirs": [], "ours": []}
        self._started = 0.0
        self._memory: PeakMemory | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_others: Any) -> None:
        self._memory = PeakMemory()
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_others: Any) -> None:
        assert self._memory is not None
        self._note("theirs", self._memory, self._started)
        memory, started = PeakMemory(), time.perf_counter()
        self._ours(state.global_step)
        self._note("ours", memory, started)

    def _note(self, name: str, memory: PeakMemory, started: float) -> None:
        self.seconds[name].append(time.perf_counter() - started)
        self.mib[name].append(memory.read_mib())


def grpo(ours: Backbone, theirs: Backbone, num_tokens: int, repeats: int) -> dict[str, float]:
    """Same model, prompts, group size, lengths, token-mean loss without KL, AdamW; one group a step.

    Args:
        ours, theirs: the same model twice.
    """
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    samples = [make_sample(num_tokens, ours, number) for number in range(repeats + 1)]
    rows = [
        {"prompt": [{"role": "user", "content": s.question}], "image": s.pictures[0].source}
        for s in samples
    ]
    optimizer = make_optimizer(ours.policy_parameters(), OptimConfig(1e-5))

    def our_step(number: int) -> None:
        forget_pictures(ours)
        ours_grpo_step(ours, optimizer, samples[number % len(samples)], GROUP_SIZE)

    def reward(completion_ids: list[list[int]], **_columns: Any) -> list[float | None]:
        return [reward_of(tuple(ids)) for ids in completion_ids]

    turns = _Turns(our_step)
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=GROUP_SIZE,
            num_generations=GROUP_SIZE,
            max_completion_length=COMPLETION_TOKENS,
            generation_kwargs={"min_new_tokens": COMPLETION_TOKENS},
            temperature=1.0,
            beta=0.0,
            loss_type="dapo",
            scale_rewards="none",
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            max_steps=repeats + 1,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=theirs.peft,
            reward_funcs=reward,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=theirs.processor,
            callbacks=[turns],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    seconds = {name: values[1:] for name, values in turns.seconds.items()}  # the first warms up
    memory = {name: statistics.median(values[1:]) for name, values in turns.mib.items()}
    return {
        "ours_s": statistics.median(seconds["ours"]),
        "theirs_s": statistics.median(seconds["theirs"]),
        "ratio": median_ratio(seconds, "theirs", "ours"),
        "ours_mib": memory["ours"],
        "theirs_mib": memory["theirs"],
        "memory_share": memory["ours"] / memory["theirs"],
    }
