"""The judge: no redirect is followed, and its key is in no message."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from prism_lite.config import JudgeConfig
from prism_lite.rewards.judge import ask_judge

KEY = "secret-key-1234"


class Handler(http.server.BaseHTTPRequestHandler):
    """Redirects, or repeats the request in an error or a reply, by its path."""

    seen: list[tuple[str, str | None]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key = self.headers.get("Authorization", "")
        if self.path.startswith("/redirect"):
            self.send_response(307)
            self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/other")
            self.end_headers()
        elif self.path.startswith("/error"):
            self.send_error(401, f"bad key {key}")
        else:
            body = json.dumps({"choices": [{"message": {"content": f"you sent {key}"}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    Handler.seen.clear()
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{serving.server_address[1]}"
        serving.shutdown()


@pytest.mark.parametrize(
    ("path", "words"),
    [("redirect", "redirects to localhost:.*not followed"), ("error", "401"), ("reply", "neither")],
)
def test_no_redirect_and_no_key(server, monkeypatch, path, words):
    settings = JudgeConfig(base_url=f"http://{server}/{path}", num_attempts=1)
    monkeypatch.setenv(settings.key_variable, KEY)
    with pytest.raises(RuntimeError, match=words) as refused:
        ask_judge("q", "1", "2", settings, sleep=lambda _: None)
    assert KEY not in str(refused.value)
    assert [place for place, _ in Handler.seen] == [f"/{path}/chat/completions"]
    assert Handler.seen[0][1] == f"Bearer {KEY}"


def test_a_password_in_the_address_is_refused_and_not_printed():
    settings = JudgeConfig(base_url="http://user:hidden@127.0.0.1:9/v1", num_attempts=1)
    with pytest.raises(ValueError, match="holds more than an address") as refused:
        ask_judge("q", "1", "2", settings, sleep=lambda _: None)
    assert "hidden" not in str(refused.value)
