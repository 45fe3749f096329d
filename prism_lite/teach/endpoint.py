"""A teacher at an OpenAI-compatible endpoint: pace, retries, and what its replies hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from prism_lite.endpoint import EndpointError, json_headers, post_json
from prism_lite.teach.replies import NoReplyError, Received, RefusedError
from prism_lite.teach.rows import to_messages
from prism_lite.teach.settings import EndpointSettings, TeachSettings
from prism_lite.types import Sample, Stopped

_LONGEST_WAIT_S = 60.0  # of our own; an endpoint may ask for more
_LONGEST_ASKED_WAIT_S = 3600.0
# Every row would meet these: the key, the model's name or the address is wrong.
_FATAL = (401, 402, 403, 404, 405)


class Pace:
    """When the next request may begin, shared by all threads."""

    def __init__(self, per_minute: float, stop: threading.Event) -> None:
        self._between_s = 60.0 / per_minute if per_minute else 0.0
        self._stop, self._lock = stop, threading.Lock()
        self._next_s = 0.0

    def wait(self) -> None:
        """Wait for the next free moment.

        Raises:
            Stopped: the program is stopping.
        """
        while True:
            with self._lock:
                now_s = time.monotonic()
                wait_s = self._next_s - now_s
                if wait_s <= 0:
                    self._next_s = now_s + self._between_s
            if wait_s <= 0:
                break
            self.sleep(wait_s)
        self.sleep(0.0)

    def hold(self, seconds: float) -> None:
        """Let no request begin for some time."""
        with self._lock:
            self._next_s = max(self._next_s, time.monotonic() + seconds)

    def sleep(self, seconds: float) -> None:
        """Wait, unless the program is stopping.

        Raises:
            Stopped: it is.
        """
        if self._stop.wait(seconds):
            raise Stopped("stopped")


@dataclass(frozen=True)
class EndpointTeacher:
    """Asks for one reply at a time; used by several threads.

    Attributes:
        base_url: checked, without a slash at its end.
        key: never printed, not even by `repr`.
        pace: shared by the threads.
        notify: prints why the first request that failed is repeated, so that nobody waits unknowingly.
    """

    base_url: str
    key: str = field(repr=False)
    asked: TeachSettings
    settings: EndpointSettings
    pace: Pace
    notify: Callable[[str], None] = lambda _: None
    _once: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def reply(self, prompt: Sample) -> Received:
        """Return the reply to a prompt, after as many retries as are allowed.

        Raises:
            NoReplyError: no reply can be used.
            RefusedError: no row would get one.
            Stopped: the program is stopping.
        """
        body = self._body(prompt)
        url, headers = f"{self.base_url}/chat/completions", json_headers(self.key)
        for attempt in range(self.settings.retries + 1):
            self.pace.wait()
            try:
                reply = post_json(url, body, headers, self.settings.timeout_s)
                return _received(reply, num_requests=attempt + 1)
            except EndpointError as error:
                if error.status in _FATAL or 300 <= (error.status or 0) < 400:
                    variables = " or ".join(f"${name}" for name in self.settings.key_variables)
                    raise RefusedError(
                        f"{self.base_url} refuses requests ({error}): check --base-url, --model and the "
                        f"key ({'from' if self.key else 'none in'} {variables})."
                    ) from None
                if not error.is_temporary or attempt == self.settings.retries:
                    num_requests = attempt + 1
                    plural = "s" * (num_requests > 1)
                    message = f"{error}, after {num_requests} request{plural}"
                    raise NoReplyError(message, num_requests) from None
                self._wait(error, attempt)
        raise AssertionError("the last attempt returns or raises")

    def _wait(self, error: EndpointError, attempt: int) -> None:
        """Wait before the next attempt: as long as the endpoint asks, else 1, 2, 4, ... seconds.

        Raises:
            RefusedError: it asks for more than an hour.
        """
        asked_s = error.retry_after_s
        if self._once.acquire(blocking=False):  # never released: only the first thread prints it
            self.notify(
                f"{self.base_url}: {error}. Requests that fail are repeated up to {self.settings.retries} "
                "times, after 1, 2, 4, ... seconds or as long as the endpoint asks. This is printed once."
            )
        if asked_s is not None and asked_s > _LONGEST_ASKED_WAIT_S:
            raise RefusedError(
                f"{self.base_url} asks to wait {asked_s:.0f} s ({error}): give the same command again then."
            )
        if asked_s is not None:
            self.pace.hold(asked_s)  # a limit of the key, not of this request
        else:
            spread = Random().uniform(
                0.75, 1.25
            )  # threads that failed together come back at different times
            self.pace.sleep(min(_LONGEST_WAIT_S, 2.0**attempt) * spread)

    def _body(self, prompt: Sample) -> dict[str, Any]:
        body = {
            "model": self.asked.model,
            "messages": to_messages(prompt, self.asked.max_pixels),
            "max_tokens": self.asked.max_tokens,
            "temperature": self.asked.temperature,
        }
        body |= self.settings.request
        return {name: value for name, value in body.items() if value is not None}


def _received(reply: dict[str, Any], *, num_requests: int) -> Received:
    """Return what a reply holds.

    Raises:
        EndpointError: it holds no text.
    """
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise EndpointError(f"the reply has no choices[0].message, only {sorted(reply)}")
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(text for text in texts if isinstance(text, str))
    if not isinstance(content, str) or not content.strip():
        why = message.get("refusal") or choice.get("finish_reason") or "no reason given"
        content = ""
        if choice.get("finish_reason") != "length":
            raise EndpointError(f"the reply has no text ({str(why)[:200]})", is_temporary=False)
    usage = reply.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Received(
        content,
        choice.get("finish_reason") == "length",
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
        num_requests,
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
