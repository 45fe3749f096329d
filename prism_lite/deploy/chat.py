"""Ask a trained policy about a picture; the answer streams as it is generated."""

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
    run: str | Path,
    pictures: Sequence[str | Path],
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
        The whole answer.

    Raises:
        ValueError: no such run, stage or picture, or the prompt is too long.
    """
    config = read_run(run)
    sample = Sample(
        id="chat",
        turns=(Turn("user", question),),
        pictures=tuple(_picture(path) for path in pictures),
        source="the question",
    )
    backbone = load_stage(run, config, stage or last_stage(run))
    limit = max_tokens or config.sampling.max_completion_tokens
    sample = sample.with_system_prompt(system_prompt_of(config))
    return answer(backbone, sample, temperature=temperature, max_tokens=limit)


@torch.no_grad()
def answer(
    backbone: Backbone,
    sample: Sample,
    *,
    temperature: float,
    max_tokens: int,
    streamer: Any = None,
) -> str:
    """One completion by transformers' own generation under the active role.

    Args:
        streamer: is given the tokens; default: prints their text.
    """
    prompt = backbone.prompt(sample)
    backbone.core.eval()  # training mode with checkpointing would switch the cache off
    inputs = {
        "input_ids": prompt.token_ids_P[None],
        "attention_mask": torch.ones(1, len(prompt), dtype=torch.long),
        "mm_token_type_ids": prompt.is_picture_P.int()[None],
        **pixel_inputs(backbone.processor.image_processor, prompt.pictures),
    }
    drawing = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    tokenizer: Any = backbone.tokenizer
    tokens = backbone.core.generate(
        **{name: value.to(backbone.device) for name, value in inputs.items()},
        **(drawing if temperature > 0 else {"do_sample": False}),
        max_new_tokens=max_tokens,
        use_cache=True,
        eos_token_id=backbone.end_id,
        pad_token_id=backbone.pad_id,
        suppress_tokens=backbone.suppressed_ids,
        streamer=streamer or TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )
    return tokenizer.decode(tokens[0, len(prompt) :], skip_special_tokens=True)


def _picture(path: str | Path) -> Picture:
    picture = Picture(str(path), Path(path))
    picture.open()  # before the model is loaded
    return picture
