"""Stage 3 by `align.method: sft`: the policy goes on imitating, now the teacher's completions.

What adversarial alignment is compared with: the same teacher rows, without a game. METHOD section 7.
"""

from __future__ import annotations

from prism_lite.stages.context import Context
from prism_lite.stages.sft import imitate
from prism_lite.stages.warmup import teacher_parts


def run_teacher_sft(context: Context) -> None:
    """Train the SFT policy on `task.align`'s teacher completions."""
    config = context.config.align
    context.load_policy("sft")
    imitate(
        context,
        "align",
        context.task.align,
        lambda sample: teacher_parts(sample).render(),
        num_steps=config.steps,
        batch_size=config.prompts_per_step,
        optim=config.optim,
    )
