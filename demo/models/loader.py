"""Which run's model is loaded. It loads in a thread after the page is up, and torch with it."""

from __future__ import annotations

import gc
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from demo.runs import folder

if TYPE_CHECKING:
    from demo.models.model import Model


@dataclass(frozen=True)
class Readiness:
    """Whether a run can be asked live.

    Attributes:
        kind: "recorded", "loading", "tiny" or "live".
        detail: why, in a few words.
    """

    kind: str
    detail: str


class Models:
    """Keeps at most one run loaded, for all visitors."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # held by whoever asks the model
        self._state_lock = threading.Lock()
        self._path: Path | None = None
        self._finals: tuple[str, ...] = ()
        self._model: Model | None = None
        self._problem = ""
        self._loader = threading.Thread()

    def readiness(self, path: Path) -> Readiness:
        """What the badge says; asks nothing of the disk but which weights there are."""
        name = folder.read_config(path).get("model", {}).get("name", "tiny")
        if not folder.has_weights(path):
            return Readiness("recorded", "no weights here: recorded completions, no GPU needed")
        with self._state_lock:
            if self._path != path:
                return Readiness("recorded", "its model is not loaded: a question loads it")
            if self._problem:
                return Readiness("recorded", self._problem)
            if self._model is None:
                return Readiness("loading", "the model is on its way")
            if name == "tiny":
                return Readiness("tiny", f"answers on {self._model.place}, trained in this run")
            return Readiness("live", f"{name} on {self._model.place}")

    def prepare(self, path: Path, *, replaces: bool = True) -> None:
        """Begin to load a run's model, unless it is loaded or cannot be.

        Args:
            replaces: another run's model gives way; without it, a page that is only open does not take
                the model from a visitor who asks it.
        """
        finals = folder.stages_with_weights(path)
        if not folder.has_weights(path):
            return
        with self._state_lock:
            if (self._path, self._finals) == (path, finals):
                return
            if self._path not in (None, path) and not replaces:
                return
            self._path, self._finals, self._model, self._problem = path, finals, None, ""
            self._loader = threading.Thread(target=self._load, args=(path, finals), daemon=True)
            self._loader.start()

    def get(self, path: Path) -> Model | None:
        """The loaded model of this run, or None."""
        with self._state_lock:
            return self._model if self._path == path else None

    def wait(self, path: Path) -> Model | None:
        """The model of this run once it is loaded; None where it cannot be, or another one is."""
        with self._state_lock:
            loader = self._loader if self._path == path else None
        if loader is not None and loader.ident is not None:
            loader.join()
        return self.get(path)

    def leave_gpu(self) -> None:
        """Let go of a model on a GPU: a training is about to need the card."""
        if self._loader.ident is not None:
            self._loader.join()
        with self._state_lock:
            if self._model is None or self._model.device == "cpu":
                return
        import torch

        with self.lock:  # whoever asks it now is answered first
            with self._state_lock:
                self._path, self._finals, self._model = None, (), None
            gc.collect()
            torch.cuda.empty_cache()

    def _load(self, path: Path, finals: tuple[str, ...]) -> None:
        from demo.models.model import Model

        model, problem = None, ""
        try:
            with self.lock:
                model = Model(path)
        except (ValueError, RuntimeError, OSError) as error:
            problem = str(error).splitlines()[0]
        with self._state_lock:
            if (self._path, self._finals) == (path, finals):
                self._model, self._problem = model, problem
