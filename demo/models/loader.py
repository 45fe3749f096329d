"""Load the model of one run at a time, and torch with it, in a thread after the page is up."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from demo.runs import folder

if TYPE_CHECKING:
    from demo.models.model import Model


class Models:
    """The model that all visitors share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # held while a model is loaded or asked
        self._state_lock = threading.Lock()
        self._key: tuple[Path, tuple[str, ...]] | None = None  # run and its stages with weights
        self._future: Future[Model] = Future()

    def status(self, path: Path) -> tuple[str, str]:
        """Return "recorded", "waiting", "loading", "tiny" or "live", and an explanation."""
        if not folder.has_weights(path):
            if folder.is_finished(path):
                return "recorded", "no weights in this run: recorded completions, no GPU needed"
            return "waiting", "no stage of this run is trained yet"
        future = self._future_of(path)
        if future is None:
            return "waiting", "it is loaded with the first question"
        if not future.done():
            return "loading", "the model is being loaded"
        error = future.exception()
        if error is not None:
            return "waiting", str(error).partition("\n")[0]
        name, place = folder.read_config(path)["model"]["name"], future.result().place
        if path == folder.SAMPLE_RUN:
            return "recorded", f"it ships with the demo, and its tiny model answers on {place}"
        if name == "tiny":
            return "tiny", f"trained in this run, sampled on {place}"
        return "live", f"{name} on {place}"

    def prepare(self, path: Path, *, replaces: bool = True) -> None:
        """Start to load a run's model unless it is loaded already or has no weights.

        Args:
            replaces: whether to replace the model of another run. An open page that only refreshes must
                not take the model away from a visitor who is asking it.
        """
        key = (path, folder.stages_with_weights(path))
        with self._state_lock:
            is_other = self._key is not None and self._key[0] != path
            if not folder.has_weights(path) or key == self._key or (is_other and not replaces):
                return
            self._key, self._future = key, Future()
            arguments = (path, self._future)
            threading.Thread(target=self._load, args=arguments, daemon=True).start()

    def get(self, path: Path) -> Model | None:
        """Return the model of this run if it is loaded."""
        future = self._future_of(path)
        return future.result() if future and future.done() and not future.exception() else None

    def wait(self, path: Path) -> Model | None:
        """Return the model of this run once it is loaded; None if that fails or it is replaced."""
        future = self._future_of(path)
        if future is not None:
            future.exception()  # waits
        return self.get(path)

    def free_gpu(self) -> None:
        """Unload a model from the GPU, which a training is about to need."""
        path = self._key[0] if self._key else None
        model = self.wait(path) if path else None
        if model is None or model.device == "cpu":
            return
        import torch

        with self.lock:  # a question that is being answered is finished first
            with self._state_lock:
                self._key, self._future = None, Future()
            del model
            gc.collect()
            torch.cuda.empty_cache()

    def _future_of(self, path: Path) -> Future[Model] | None:
        with self._state_lock:
            return self._future if self._key and self._key[0] == path else None

    def _load(self, path: Path, future: Future[Model]) -> None:
        from demo.models.model import Model

        try:
            with self.lock:
                future.set_result(Model(path))
        except BaseException as error:
            future.set_exception(error)
            if not isinstance(error, (ValueError, RuntimeError, OSError)):
                raise
