"""What every tab is given, and how an error becomes a sentence on the page."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from demo.models.loader import Models
from demo.runs import folder
from demo.runs.folder import Home
from demo.runs.jobs import Jobs

if TYPE_CHECKING:
    from demo.models.model import Model


@dataclass(frozen=True)
class Site:
    """The app's folders, training processes and models."""

    home: Home
    jobs: Jobs
    models: Models = field(default_factory=Models)

    def path(self, run_id: str) -> Path:
        """The folder of a run that a visitor chose.

        Raises:
            ValueError: no such run.
        """
        return folder.run_path(self.home, run_id)

    def demand_idle_gpu(self) -> None:
        """Refuse to ask a model while a training holds the card.

        Raises:
            ValueError: it does.
        """
        job = self.jobs.current()
        if job is None:
            return
        import torch

        if torch.cuda.is_available():
            raise ValueError(
                f"{job.run!r} is training on the GPU: stop it, or wait for it, before asking a model."
            )

    def model_of(self, path: Path) -> Model:
        """The run's model; loads it if need be, which on a GPU takes a while.

        Raises:
            ValueError: a training holds the GPU, or the run has no model that could answer.
        """
        if folder.has_weights(path):
            self.demand_idle_gpu()
            self.models.prepare(path)
            model = self.models.wait(path)
            if model is not None:
                return model
        raise ValueError(
            f"this needs the run's model: {self.models.readiness(path).detail}. Choose a run trained on "
            "this machine."
        )


def in_words(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose ValueErrors, which are sentences for a person, are shown on the page."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generate(*arguments: Any) -> Any:
            try:
                yield from handler(*arguments)
            except ValueError as error:
                raise gr.Error(str(error), duration=15, print_exception=False) from error

        return generate

    @functools.wraps(handler)
    def call(*arguments: Any) -> Any:
        try:
            return handler(*arguments)
        except ValueError as error:
            raise gr.Error(str(error), duration=15, print_exception=False) from error

    return call
