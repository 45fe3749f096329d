"""What the server refuses, and what it tells a browser: no page of another site steers the app.

A page of another site could send requests to a local port (DNS rebinding: its own name, resolved to
127.0.0.1). Requests under another host's name, or from a page of another origin, get 403.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
# Colab shows the page in a frame, through a proxy of these domains.
_COLAB = (".googleusercontent.com", ".colab.dev", "colab.research.google.com")
# Gradio's page needs inline scripts and styles, eval (Vega draws the plots) and workers from blobs.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' ws: wss: data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors "
)


def is_in_colab() -> bool:
    """Return whether this is a notebook of Colab."""
    return "google.colab" in sys.modules


def security_headers() -> dict[str, str]:
    """Return the headers of every response; only Colab may show the page in a frame."""
    colab = "https://*.googleusercontent.com https://*.colab.dev https://colab.research.google.com"
    return {
        "Content-Security-Policy": _POLICY + (colab if is_in_colab() else "'none'"),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


class SecurityHeaders:
    """ASGI middleware that adds the headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.headers = security_headers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class OwnHostsOnly:
    """ASGI middleware that refuses requests under a foreign host name or from a foreign page."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        """
        Args:
            hosts: names that the page is opened under; may grow while it is served (a public link).
        """
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            host = urlsplit(f"//{headers.get('host', '')}").hostname
            origin = headers.get("origin")
            is_own = self._is_own(host)
            is_same_page = origin is None or self._is_own(urlsplit(origin).hostname)
            if not (is_own and is_same_page):
                text = "403: this page is served to its own address only."
                refused = PlainTextResponse(text, status_code=403)
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": 1008})
                else:
                    await refused(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_own(self, host: str | None) -> bool:
        if host is None:
            return False
        return host in self.hosts or (is_in_colab() and host.endswith(_COLAB))
