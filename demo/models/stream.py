"""One completion, token by token, by the sampling that training uses; it ends when nobody listens."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

from prism_lite.config import SamplingConfig
from prism_lite.models.backbone import Backbone
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.types import Rollout, Sample


class _NobodyListens(BaseException):
    """Ends a sampling call from inside; no program fault, so no `except Exception` may take it."""


def sampled_tokens(
    backbone: Backbone,
    sample: Sample,
    *,
    sampling: SamplingConfig,
    seed: tuple[object, ...],
) -> Iterator[int | Rollout]:
    """The tokens of a completion as they are drawn, and the whole rollout as the last item.

    Tokens are seen on their way into the decoder, the last one is not. Closing the iterator ends the
    sampling before its next token and waits for that, so the backbone is free afterwards.

    Raises:
        ValueError, RuntimeError: those of `sample_groups`.
    """
    seen: queue.Queue[int | None] = queue.Queue()
    is_abandoned = threading.Event()
    found: list[Rollout] = []
    errors: list[ValueError | RuntimeError] = []

    def watch(_module: Any, inputs: tuple[Any, ...]) -> None:
        if is_abandoned.is_set():
            raise _NobodyListens
        if inputs[0].numel() == 1:
            seen.put(int(inputs[0]))

    def work() -> None:
        handle = backbone.core.get_input_embeddings().register_forward_pre_hook(watch)
        try:
            (group,) = sample_groups(
                backbone,
                [sample],
                group_size=1,
                sampling=sampling,
                seed=seed,
            )
            found.extend(group.rollouts)
        except (ValueError, RuntimeError) as error:  # raised where somebody reads it
            errors.append(error)
        except _NobodyListens:
            pass
        finally:
            handle.remove()
            seen.put(None)

    worker = threading.Thread(target=work, name="sampling", daemon=True)
    worker.start()
    try:
        while (token := seen.get()) is not None:
            yield token
    finally:
        is_abandoned.set()
        worker.join()
    if errors:
        raise errors[0]
    yield found[0]
