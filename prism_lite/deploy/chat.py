"""Ask a trained policy about a picture; the answer is printed as it is generated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TextStreamer

from prism_lite.data.task import system_prompt_of
from prism_lite.deploy.load import last_stage, load_stage
from prism_lite.models.backbone import Backbone
from prism_lite.models.vision import pixel_inputs
from prism_lite.recipe import read_run
from prism_lite.types import Picture, Sample, Turn


def chat(
    run_folder: str | Path,
    picture_files: Sequence[str | Path],
    question: str,
    *,
    stage: str | None = None,
    temperature: float = 0.0,
    max_tokens: int | None = None,
) -> str:
    """Print the answer of a run's policy token by token.

    Args:
        stage: any finished stage with a policy, or "base"; default: the last one.
        temperature: 0 takes the most likely token each time.
        max_tokens: default: the run's sampling.max_completion_tokens.

    Returns:
        The complete answer.

    Raises:
        ValueError: the run, stage or picture does not exist, or the prompt is too long.
    """
    config = read_run(run_folder)
    pictures = tuple(Picture(str(path), Path(path)) for path in picture_files)
    for picture in pictures:
        picture.open()  # fails before the model is loaded
    sample = Sample("chat", (Turn("user", question),), pictures, source="the question")
    backbone = load_stage(run_folder, config, stage or last_stage(run_folder))
    return answer(
        backbone,
        sample.with_system_prompt(system_prompt_of(config)),
        temperature=temperature,
        max_tokens=max_tokens or config.sampling.max_completion_tokens,
    )


@torch.no_grad()
def answer(
    backbone: Backbone,
    sample: Sample,
    *,
    temperature: float,
    max_tokens: int,
    streamer: Any = None,
) -> str:
    """Generate one completion with transformers' own generation under the active role.

    Args:
        streamer: receives the tokens; default: prints their text.
    """
    prompt = backbone.prompt(sample)
    backbone.core.eval()  # training mode with checkpointing would switch the cache off
    inputs = {
        "input_ids": prompt.token_ids_P[None],
        "attention_mask": torch.ones(1, len(prompt), dtype=torch.long),
        "mm_token_type_ids": prompt.is_picture_P.int()[None],
        **pixel_inputs(backbone.processor.image_processor, prompt.pictures),
    }
    sampled = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    tokenizer: Any = backbone.tokenizer
    with backbone.vision.tower_on_device():
        tokens = backbone.core.generate(
            **{name: value.to(backbone.device) for name, value in inputs.items()},
            **(sampled if temperature > 0 else {"do_sample": False}),
            max_new_tokens=max_tokens,
            use_cache=True,
            eos_token_id=backbone.end_id,
            pad_token_id=backbone.pad_id,
            suppress_tokens=backbone.suppressed_ids,
            streamer=streamer
            or TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        )
    return tokenizer.decode(tokens[0, len(prompt) :], skip_special_tokens=True)
