"""The settings of a run for a local teacher, known before its libraries are imported."""

from __future__ import annotations

import dataclasses

from prism_lite.config import RunConfig
from prism_lite.recipe import load_recipe
from prism_lite.teach.settings import INSTRUCTION, TeachSettings

_QUESTION_TOKENS = 1024  # of a prompt, beside its pictures and a reply that is asked again
_TEMPERATURE = 0.7


def with_own_instruction(settings: TeachSettings) -> TeachSettings:
    """Return the settings of a local teacher: the tiny model was trained on an instruction of its own."""
    if settings.model != "tiny" or settings.instruction != INSTRUCTION:
        return settings
    from prism_lite.digits.lessons import INSTRUCTION as OF_TINY

    return dataclasses.replace(settings, instruction=OF_TINY)


def local_config(settings: TeachSettings, *, batch_rows: int) -> RunConfig:
    """Return the settings of a run that only samples the teacher.

    Args:
        batch_rows: rows that are asked at the same time.

    Raises:
        ValueError: the model is not known.
    """
    num_picture_tokens = settings.max_pixels // 1024  # 32 x 32 pixels make one token
    max_prompt_tokens = num_picture_tokens + _QUESTION_TOKENS + settings.max_tokens
    recipe = "tiny" if settings.model == "tiny" else "rtx3060-2b"
    config = load_recipe(
        recipe,
        {
            "recipe": f"teacher {settings.model}",
            "model.name": settings.model,
            "model.min_gpu_gib": 0,
            "model.device": "auto",
            "model.max_pixels": settings.max_pixels,
            "model.max_prompt_tokens": max_prompt_tokens,
            "model.max_pack_tokens": max_prompt_tokens + settings.max_tokens,
            "model.max_cached_pictures": 4 * batch_rows,  # a row's pictures are not seen again
            "lora.rank": 1,  # untrained: it changes nothing
            "lora.alpha": 1,
            "sampling.max_completion_tokens": settings.max_tokens,
            "sampling.max_rows": batch_rows * settings.num,
        },
    )
    temperature = _TEMPERATURE if settings.temperature is None else settings.temperature
    return dataclasses.replace(
        config,
        sampling=dataclasses.replace(config.sampling, temperature=temperature),
        align=dataclasses.replace(
            config.align, group_size=settings.num, prompts_per_step=batch_rows
        ),
    )
