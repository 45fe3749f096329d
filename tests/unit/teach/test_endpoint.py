"""Requests: every fault of a server, the key, redirects, pace and retries."""

from __future__ import annotations

import dataclasses
import email.utils
import itertools
import json
import threading
import time
import traceback

import pytest

from prism_lite.endpoint import EndpointError, check_address, json_headers, post_json, read_key
from prism_lite.teach.endpoint import EndpointTeacher, Pace
from prism_lite.teach.replies import NoReplyError, RefusedError
from prism_lite.teach.settings import EndpointSettings, TeachSettings
from prism_lite.types import Sample, Stopped, Turn
from tests.teacher_server import Fault, endpoint, reply_body

KEY = "sk-secret-0123456789"
PROMPT = Sample("1", (Turn("system", "be brief"), Turn("user", "what?")))


def teacher(url: str, *, stop: threading.Event | None = None, **settings) -> EndpointTeacher:
    settings = {"retries": 2, "timeout_s": 2.0} | settings
    pace = Pace(settings.get("per_minute", 0), stop or threading.Event())
    asked = TeachSettings("large", temperature=0.5, max_tokens=99)
    return EndpointTeacher(url, KEY, asked, EndpointSettings(url, **settings), pace)


def test_request_and_reply():
    with endpoint(lambda body, n: "hello") as server:
        extra = {"max_tokens": None, "max_completion_tokens": 7}
        received = teacher(server.url, request=extra).reply(PROMPT)
    (request,), (headers,) = server.requests, server.headers
    assert (received.text, received.is_cut, received.num_requests) == ("hello", False, 1)
    assert (received.prompt_tokens, received.completion_tokens) == (100, 20)
    assert request["path"] == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert request["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "what?"},
    ]
    assert (request["model"], request["temperature"]) == ("large", 0.5)
    assert "max_tokens" not in request and request["max_completion_tokens"] == 7


def test_why_requests_are_repeated_is_said_once(monkeypatch):
    monkeypatch.setattr("prism_lite.teach.endpoint.Pace.sleep", lambda self, seconds: None)
    url, said = "http://127.0.0.1:1/v1", []
    asked = dataclasses.replace(teacher(url), notify=said.append)
    for _ in range(2):
        with pytest.raises(NoReplyError, match="after 3 requests"):
            asked.reply(PROMPT)
    (text,) = said
    assert text.startswith(f"{url}: ") and "refused" in text and "up to 2 times" in text


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(500, body="out of order"), "status 500: 'out of order'"),
        (Fault(429, {"Retry-After": "0"}, '{"error": {"message": "slow down"}}'), "429: 'slow down'"),
        (Fault(0), "RemoteDisconnected"),
        (Fault(body='{"choices": [{"mess', cut=False), "not JSON"),
        (Fault(body=json.dumps(reply_body("x" * 999)), cut=True), "IncompleteRead"),
        (Fault(body="[1, 2]"), "not a JSON object"),
        (Fault(body="[" * 100_000), "not JSON"),
        (Fault(body="{}"), r"no choices\[0\].message"),
        (Fault(body='{"choices": [null]}'), "no choices"),
        (Fault(stall_s=1.0), "timed out"),
        (Fault(body=json.dumps(reply_body("x")), drip_s=0.02), "not complete in time"),
    ],
    ids=lambda value: "" if isinstance(value, Fault) else value,
)  # fmt: skip
def test_faults_are_tried_again_and_then_named(fault, words, monkeypatch):
    monkeypatch.setattr("prism_lite.teach.endpoint.Pace.sleep", lambda self, seconds: None)
    with endpoint(lambda body, n: fault if n < 3 else "fine") as server:
        with pytest.raises(NoReplyError, match=f"{words}.*after 3 requests") as raised:
            teacher(server.url, timeout_s=0.5).reply(PROMPT)
        assert raised.value.num_requests == len(server.requests) == 3
        received = teacher(server.url, timeout_s=0.5).reply(PROMPT)
        assert (received.text, received.num_requests) == ("fine", 1)


def test_a_reply_after_two_faults_counts_three_requests(monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr("prism_lite.teach.endpoint.Pace.sleep", lambda self, s: waited.append(s))
    with endpoint(lambda body, n: Fault(503) if n < 2 else "fine") as server:
        assert teacher(server.url).reply(PROMPT).num_requests == 3
    first, second = [seconds for seconds in waited if seconds]
    assert 0.75 <= first <= 1.25 and 1.5 <= second <= 2.5


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_all_threads_wait_as_long_as_the_endpoint_asks(form):
    date = email.utils.formatdate(time.time() + 2, usegmt=True)  # whole seconds: 1 to 2
    header = {"Retry-After": "1" if form == "seconds" else date}
    with endpoint(lambda body, n: Fault(429, header) if n == 0 else "fine") as server:
        asked = teacher(server.url)
        threads = [threading.Thread(target=asked.reply, args=(PROMPT,)) for _ in range(3)]
        threads[0].start()
        time.sleep(0.4)
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join()
    first, *others = (request["at_s"] for request in server.requests)
    assert len(others) == 3 and min(others) - first >= 0.9


def test_a_wait_of_more_than_an_hour_ends_the_run():
    with (
        endpoint(lambda body, n: Fault(429, {"Retry-After": "86400"})) as server,
        pytest.raises(RefusedError, match="asks to wait 86400 s"),
    ):
        teacher(server.url).reply(PROMPT)


def test_pace_limits_requests_and_a_stop_ends_the_wait():
    with endpoint(lambda body, n: "fine") as server:
        asked = teacher(server.url, per_minute=240)  # one in 0.25 s
        for _ in range(4):
            asked.reply(PROMPT)
    times = [request["at_s"] for request in server.requests]
    assert all(b - a >= 0.2 for a, b in itertools.pairwise(times))
    stop = threading.Event()
    pace = Pace(0, stop)
    pace.hold(60)
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(Stopped):
        pace.wait()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_every_row_would_meet_ends_the_run_and_shows_no_key(status):
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}})
    with endpoint(lambda body_, n: Fault(status, body=body)) as server:
        with pytest.raises(RefusedError, match=f"status {status}.*check --base-url") as raised:
            teacher(server.url).reply(PROMPT)
        assert len(server.requests) == 1
    text = "".join(traceback.format_exception(raised.value)) + repr(teacher(server.url))
    assert KEY not in text and "***" in text


def test_a_bad_request_is_this_rows_alone_and_not_repeated():
    with endpoint(lambda body, n: Fault(400, body="too large")) as server:
        with pytest.raises(NoReplyError, match=r"status 400: 'too large', after 1 request$"):
            teacher(server.url).reply(PROMPT)
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(status):
    with endpoint(lambda body, n: "the key was sent here") as elsewhere:
        header = {"Location": f"{elsewhere.url}/chat/completions"}
        with endpoint(lambda body, n: Fault(status, header)) as server:
            with pytest.raises(
                RefusedError, match=r"redirects to 127\.0\.0\.1:\d+, which is not followed"
            ):
                teacher(server.url).reply(PROMPT)
            with pytest.raises(EndpointError, match="not followed"):
                body = {"messages": [{"role": "user", "content": "?"}]}
                post_json(f"{server.url}/x", body, json_headers(KEY), 2.0)
    assert not elsewhere.requests


def test_no_text_is_a_reason_and_a_cut_off_reply_is_not():
    refused = reply_body(None, "content_filter")
    replies = [reply_body("half", "length"), reply_body("", "length"), refused]
    parts = [{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]
    replies.append(reply_body(parts, usage=None))
    with endpoint(lambda body, n: replies[n]) as server:
        asked = teacher(server.url)
        assert asked.reply(PROMPT).is_cut and asked.reply(PROMPT).is_cut
        with pytest.raises(NoReplyError, match=r"no text \(content_filter\)"):
            asked.reply(PROMPT)
        received = asked.reply(PROMPT)
    assert received.text == "in parts" and received.completion_tokens is None


def test_nobody_listens():
    with pytest.raises(NoReplyError, match=r"no complete reply .*refused"):
        teacher("http://127.0.0.1:9/v1", retries=0).reply(PROMPT)


def test_replies_are_searched_for_the_key():
    with endpoint(lambda body, n: f"your key is {KEY}") as server:
        assert teacher(server.url).reply(PROMPT).text == "your key is ***"


def test_keys_and_addresses(monkeypatch):
    monkeypatch.delenv("A", raising=False)
    monkeypatch.setenv("B", f" {KEY}\n")
    assert read_key("A", "B") == KEY and read_key("A") == ""
    for bad in (f"{KEY}\r\nX-Evil: 1", "två", "a b"):
        monkeypatch.setenv("A", bad)
        with pytest.raises(ValueError, match=r"the key in \$A holds") as raised:
            read_key("A", "B")
        assert bad not in str(raised.value)
    assert check_address("https://a.example/v1/", "--x") == "https://a.example/v1"
    for address in ("file:///etc", "localhost:80", "http://", ""):
        with pytest.raises(ValueError, match=r"--x .* is not an http address"):
            check_address(address, "--x")
    for address in ("https://me:pw@a.example/v1", "https://a.example/v1?key=pw"):
        with pytest.raises(ValueError, match="more than an address") as raised:
            check_address(address, "--x")
        assert "pw" not in str(raised.value)
