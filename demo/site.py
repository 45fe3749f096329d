"""What every tab is built from: the site, the page's header, and how events are connected."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.events import Dependency

from demo.models.loader import Models
from demo.runs import folder
from demo.runs.folder import Home
from demo.runs.trainer import Trainer

if TYPE_CHECKING:
    from demo.models.model import Model


@dataclass(frozen=True)
class Site:
    """The runs, the training process and the models."""

    home: Home
    trainer: Trainer
    models: Models = field(default_factory=Models)

    def path(self, run_id: str) -> Path:
        """Return the folder of a run; raise a ValueError if it does not exist."""
        return folder.run_path(self.home, run_id)

    def load_model(self, path: Path) -> Model:
        """Return the run's model, or raise a ValueError that says why there is none to ask."""
        process = self.trainer.current()
        if process is not None and folder.has_weights(path):
            import torch

            if torch.cuda.is_available():
                raise ValueError(
                    f"{process.run_id!r} is training on the GPU: stop it or wait until it is finished, "
                    "then ask the model."
                )
        self.models.prepare(path)
        model = self.models.wait(path)
        if model is None:
            raise ValueError(
                f"this needs the run's model: {self.models.status(path)[1]}. Choose another run above, or "
                "wait until its first stage is trained."
            )
        return model


@dataclass(frozen=True)
class Header:
    """What the tabs need of the page's header.

    Attributes:
        run_choice: the choice of a run.
        opened: the event that sets it when the page opens.
        tick: a timer.
        num_finished: stages of the chosen run that were finished since the page was opened.
        badge: the state of the chosen run's model.
        show_status: returns the badge of a run.
    """

    run_choice: gr.Dropdown
    opened: Dependency
    tick: gr.Timer
    num_finished: gr.Number
    badge: gr.HTML
    show_status: Callable[[str], str]

    def on_run(self, handler: Callable[..., Any], outputs: Sequence[Any]) -> None:
        """Call `handler(run_id)` when the page opens, another run is chosen or a stage is finished."""
        connect(self.opened.then, handler, [self.run_choice], outputs, is_silent=True)
        connect(self.run_choice.change, handler, [self.run_choice], outputs)
        connect(self.num_finished.change, handler, [self.run_choice], outputs, is_silent=True)


@contextlib.contextmanager
def errors_on_page() -> Iterator[None]:
    """Show the message of a ValueError on the page. Also works as a decorator of a handler."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(str(error), duration=15, print_exception=False) from error


def connect(
    event: Callable[..., Dependency],
    handler: Callable[..., Any],
    inputs: Sequence[Any] | None,
    outputs: Sequence[Any] | None,
    *,
    is_silent: bool = False,
    is_slow: bool = False,
) -> Dependency:
    """Connect a handler without a public endpoint; its ValueErrors appear on the page.

    Args:
        event: such as `button.click`.
        handler: called with the values of `inputs`; returns those of `outputs`.
        is_silent: for events that no visitor causes (timers, an opening page): they bypass the queue, which
            is quicker, but Gradio then shows no message of an error.
        is_slow: whether to show progress.
    """
    return event(
        errors_on_page()(handler),
        inputs,
        outputs,
        queue=not is_silent,
        concurrency_limit=None,
        show_progress="minimal" if is_slow else "hidden",
        api_visibility="private",
    )
