"""A local OpenAI-compatible endpoint that answers as a test tells it, with every fault a real one has."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMPLETION = (
    "<caption>\n- a {word}\n</caption><think>I see a {word}.</think>\n<answer>{word}</answer>"
)


@dataclass(frozen=True)
class Fault:
    """An answer that is not a plain completion.

    Attributes:
        status: of the reply; 0 closes the connection without one.
        headers: of the reply.
        body: raw text; None makes a completion's.
        stall_s: seconds before the reply.
        drip_s: seconds between the bytes of the body.
        cut: announce the complete body and send half of it.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    stall_s: float = 0.0
    drip_s: float = 0.0
    cut: bool = False


@dataclass
class Server:
    """What the endpoint was asked.

    Attributes:
        url: its base URL.
        requests: bodies in order, with the question under "question" and the time under "at_s".
        headers: of the requests.
    """

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def num_asked(self, question: str) -> int:
        return sum(request["question"] == question for request in self.requests)


Answer = Callable[[dict[str, Any], int], "str | Fault | dict[str, Any]"]


def question_of(body: dict[str, Any]) -> str:
    """The text of the first user turn."""
    content = next(m["content"] for m in body["messages"] if m["role"] == "user")
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def reply_body(text: str | None, finish: str = "stop", **fields: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 100, "completion_tokens": 20}
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": usage} | fields


@contextmanager
def endpoint(answer: Answer) -> Iterator[Server]:
    """Serve until the block ends; `answer(body, n)` answers the n-th request of a question, from 0."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body |= {"question": question_of(body), "at_s": time.monotonic(), "path": self.path}
            with lock:
                number = server.num_asked(body["question"])
                server.requests.append(body)
                server.headers.append(dict(self.headers))
            self._send(answer(body, number))

        do_GET = do_POST

        def _send(self, reply: str | Fault | dict[str, Any]) -> None:
            fault = reply if isinstance(reply, Fault) else Fault()
            if isinstance(reply, str):
                reply = reply_body(reply)
            text = fault.body if isinstance(reply, Fault) else json.dumps(reply)
            content = (text or "").encode()
            time.sleep(fault.stall_s)
            self.close_connection = True
            if fault.status == 0:
                return
            self.send_response(fault.status)
            for name, value in fault.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Connection", "close")
            self.end_headers()
            if fault.cut:
                content = content[: len(content) // 2]
            if not fault.drip_s:
                self.wfile.write(content)
                return
            for byte in content:
                self.wfile.write(bytes([byte]))
                time.sleep(fault.drip_s)

        def log_message(self, *_arguments: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_arguments: object) -> None:
            pass  # a client that was killed

    http = Quiet(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
