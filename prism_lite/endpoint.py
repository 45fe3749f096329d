"""Requests to an OpenAI-compatible endpoint: the LLM judge and the teacher use them.

The API key comes from an environment variable. It is sent to the named address only (redirects are not
followed), and it is removed from whatever the endpoint sends back, which may be printed or stored.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

_MAX_REPLY_BYTES = 16 * 2**20
_CHUNK_BYTES = 65536
_MAX_QUOTED_CHARACTERS = 300
# Requests that may succeed later; 408, 425 and 429 are the only errors of a client among them.
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)


class EndpointError(RuntimeError):
    """A request without a usable reply; its text is for the user.

    Attributes:
        status: HTTP status, or None where there was no reply.
        is_temporary: the same request may succeed later.
        retry_after_s: how long the endpoint asks to wait, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        is_temporary: bool = True,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.is_temporary = is_temporary
        self.retry_after_s = retry_after_s


def check_address(base_url: str, setting: str) -> str:
    """Return the address without a slash at its end.

    Args:
        setting: its name, for the message.

    Raises:
        ValueError: it is not a plain http(s) address.
    """
    parts = urllib.parse.urlsplit(base_url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            f"{setting} holds more than an address (a name and password, or ?...): a key is given in an "
            "environment variable."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"{setting} {base_url!r} is not an http address; give it like http://localhost:8000/v1."
        )
    return base_url.rstrip("/")


def read_key(*variables: str) -> str:
    """Return the key in the first of these environment variables that is set, or "".

    Raises:
        ValueError: it cannot be sent in a header; the message does not hold it.
    """
    for name in variables:
        key = os.environ.get(name, "").strip()
        if key:
            if not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError(
                    f"the key in ${name} holds spaces, line breaks or other characters that no key has: "
                    "set it again."
                )
            return key
    return ""


def json_headers(key: str) -> dict[str, str]:
    """Return the headers of a request; without a key none is sent."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    return headers | {"Authorization": f"Bearer {key}"} if key else headers


def post_json(
    url: str, body: dict[str, Any], headers: dict[str, str], timeout_s: float
) -> dict[str, Any]:
    """POST `body` as JSON and return the JSON object of the reply.

    Args:
        timeout_s: of the complete reply, and of connecting.

    Raises:
        EndpointError: the reply is not complete in time, it has another status than 200, or it is not a
            JSON object.
    """
    key = headers.get("Authorization", "").removeprefix("Bearer ")
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with _OPENER.open(request, timeout=timeout_s) as reply:
            content = _read(reply, time.monotonic() + timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(error, key) from None
    except (OSError, http.client.HTTPException) as error:
        # URLError and every failure of a connection are OSErrors; a reply that ends early is not.
        reason = getattr(error, "reason", None) or error
        text = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else reason
        raise EndpointError(f"no complete reply ({_without(str(text), key)})") from None
    text = _without(content.decode("utf-8", "replace"), key)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise EndpointError(f"the reply is not JSON: {_quoted(text)}") from None
    if not isinstance(value, dict):
        raise EndpointError(f"the reply is not a JSON object: {_quoted(text)}")
    return value


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves 3xx an error: the key would be sent on to another address."""

    def redirect_request(self, *_arguments: Any, **_more: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def _read(reply: Any, deadline_s: float) -> bytes:
    """Read a body that must be complete by the deadline, however slowly it arrives."""
    content = bytearray()
    while chunk := reply.read1(_CHUNK_BYTES):
        content += chunk
        if len(content) > _MAX_REPLY_BYTES:
            raise EndpointError(f"the reply has more than {_MAX_REPLY_BYTES} bytes")
        if time.monotonic() > deadline_s:
            raise TimeoutError("the reply was not complete in time")
    announced = reply.headers.get("Content-Length", "")
    if announced.isdigit() and len(content) < int(announced):
        raise http.client.IncompleteRead(bytes(content), int(announced) - len(content))
    return bytes(content)


def _refusal(error: urllib.error.HTTPError, key: str) -> EndpointError:
    """Return what a status other than 200 means."""
    try:
        text = error.read1(_CHUNK_BYTES).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException, AttributeError):  # cut off, or no body at all
        text = ""
    status, detail = error.code, _quoted(_without(_message_of(text), key))
    if 300 <= status < 400:
        host = urllib.parse.urlsplit(error.headers.get("Location", "")).netloc
        text = f"status {status}: it redirects to {_without(host, key)}, which is not followed"
        return EndpointError(text, status=status, is_temporary=False)
    return EndpointError(
        f"status {status}: {detail}",
        status=status,
        is_temporary=status in _TEMPORARY,
        retry_after_s=_seconds(error.headers.get("Retry-After")),
    )


def _message_of(text: str) -> str:
    """Return the message in an error's JSON, or the text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    inner = value.get("error", value) if isinstance(value, dict) else value
    message = inner.get("message") if isinstance(inner, dict) else inner
    return message if isinstance(message, str) else text


def _seconds(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header: a number, or a date."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, date.timestamp() - time.time())


def _without(text: str, key: str) -> str:
    return text.replace(key, "***") if key else text


def _quoted(text: str) -> str:
    """Return a text on one line, shortened."""
    line = " ".join(text.split())
    is_short = len(line) <= _MAX_QUOTED_CHARACTERS
    return repr(line if is_short else line[:_MAX_QUOTED_CHARACTERS] + "...")
