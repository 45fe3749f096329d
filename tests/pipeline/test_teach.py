"""`prism-lite teach` against a local endpoint with every fault: rows, kills, the key, estimates."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from prism_lite.data.checks.check import check
from prism_lite.data.formats.load import load_samples
from prism_lite.files import read_jsonl
from prism_lite.teach.journal import journal_path
from tests.pipeline.commands import REPOSITORY, check_refused, in_process
from tests.teacher_server import COMPLETION, Fault, endpoint, reply_body

KEY = "sk-secret-0123456789"
WORDS = ("cat", "dog", "cow", "hen")


def make_data(folder: Path, num: int) -> Path:
    """Rows "Row i?" with a picture of their own and a word as the answer."""
    folder.mkdir(exist_ok=True)
    rows = []
    for i in range(num):
        Image.new("RGB", (32, 32), (i % 256, i // 256, 9)).save(folder / f"{i}.png")
        rows.append({"prompt": f"Row {i}?", "images": f"{i}.png", "answer": WORDS[i % 4]})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def right(body) -> str:
    return COMPLETION.format(word=WORDS[number(body) % 4])


def number(body) -> int:
    return int(body["question"].split()[1].rstrip("?"))


def teach(data: Path, url: str, out: Path, *more: object):
    return in_process(
        "teach", data, "--base-url", url, "--model", "large", "--out", out, "--retries", 1, *more
    )


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("PRISM_TEACHER_API_KEY", KEY)
    monkeypatch.setattr("prism_lite.teach.endpoint._LONGEST_WAIT_S", 0.01)


def test_every_row_ends_with_a_teacher_or_a_named_reason(tmp_path):
    """A row for each fault: passing ones are retried, lasting ones are named, the next run repairs them."""
    half = json.dumps(reply_body("x" * 500))
    faults = {
        0: Fault(429, {"Retry-After": "0"}), 1: Fault(500), 2: Fault(stall_s=1.5), 3: Fault(0),
        4: Fault(body=half, cut=True), 5: Fault(body=half[:40]), 6: Fault(body=half, drip_s=0.01),
        7: Fault(400, body="this picture is too large"),
    }  # fmt: skip
    lasting = {10 + i: fault for i, fault in faults.items()}
    is_up = False

    def answer(body, n):
        i = number(body)
        if i in faults and n == 0 and i != 7:
            return faults[i]
        if i in lasting and not is_up:
            return lasting[i]
        if i == 20:
            return right(body) if n == 2 else ("no tags" if n == 0 else right(body)[:-4])
        if i == 21:
            return "never any tags"
        if i == 22:
            return COMPLETION.format(word="cat" if n < 2 else "cow")
        if i == 23:
            return COMPLETION.format(word="mouse")
        if i == 24:
            return reply_body(right(body), "length")
        return right(body)

    data, out = make_data(tmp_path / "data", 30), tmp_path / "taught.jsonl"
    options = ("--keep-right", "--timeout", 0.5, "--parallel", 6)
    with endpoint(answer) as server:
        done = teach(data, server.url, out, *options)
        assert done.returncode == 1, done.stdout + done.stderr
        asked = [r["messages"] for r in server.requests if r["question"] == "Row 20?"]
        again = next(messages for messages in asked if len(messages) == 4)
        assert again[2] == {"role": "assistant", "content": "no tags"}
        assert "missing <caption>" in again[3]["content"]
        assert [server.num_asked(f"Row {i}?") for i in (1, 20, 21, 22, 24, 25)] == [
            2,
            3,
            3,
            3,
            3,
            1,
        ]
        wrong = [r["messages"] for r in server.requests if r["question"] == "Row 22?"]
        assert {len(messages) for messages in wrong} == {2}, "a wrong one is asked afresh"

        ends = {r["place"]: r for r in read_jsonl(journal_path(out)) if "end" in r}
        by_row = {i: ends[f"rows.jsonl, line {i + 1}"] for i in range(30)}
        unknown = [i for i, record in by_row.items() if record["end"] != "taught"]
        assert unknown == [*range(10, 18), 21, 23, 24]
        reasons = {i: f"{by_row[i]['end']}: {by_row[i]['reason']}" for i in unknown}
        for i, words in {
            10: "failed: status 429", 11: "failed: status 500", 12: "timed out", 13: "Disconnected",
            14: "IncompleteRead", 15: "not JSON", 16: "not complete in time",
            17: "failed: status 400: 'this picture is too large'", 21: "malformed: missing <caption>",
            23: "wrong: the teacher answers 'mouse', the gold answer is 'hen'",
            24: "malformed: it was cut off",
        }.items():  # fmt: skip
            assert words in reasons[i], reasons[i]
        text = " ".join(done.stdout.split())
        assert "19 rows with teacher text" in text
        assert "11 rows without: 2 malformed, 1 wrong, 8 failed" in text
        assert "25 kept" not in text and "19 kept, 8 malformed, 5 wrong" in text
        report = check(out)
        assert report.ok and report.num_rows == 19

        is_up, num_before = True, len(server.requests)
        done = teach(data, server.url, out, *options)
        assert done.returncode == 0, done.stdout
        assert len(server.requests) - num_before == 8, "the failed rows alone are asked again"
        assert "27 rows with teacher text" in " ".join(done.stdout.split()) and check(out).ok
        assert teach(data, server.url, out, *options).returncode == 0
        assert len(server.requests) - num_before == 8, "nothing is left to ask"
    samples = {sample.question: sample for sample in load_samples(out)}
    assert len(samples) == 27
    for question, sample in samples.items():
        assert sample.teacher_parts.answer == sample.answer == WORDS[int(question[11:-1]) % 4]


def test_several_completions_and_wrong_ones_without_keep_right(tmp_path):
    data, out = make_data(tmp_path, 3), tmp_path / "taught.jsonl"

    def answer(body, n):
        word = "mouse" if number(body) == 1 and n == 1 else WORDS[number(body) % 4]
        return COMPLETION.format(word=word).replace("I see", f"Look {n}: I see")

    with endpoint(answer) as server:
        done = teach(data, server.url, out, "--num", 3, "--field", "both", "--price", 2, 10)
    assert done.returncode == 0 and len(server.requests) == 9
    rows = list(load_samples(out))
    assert [len(set(sample.teachers)) for sample in rows] == [3, 3, 3]
    assert all(sample.demonstration == sample.teacher for sample in rows)
    text = " ".join(done.stdout.split())
    assert "counted tokens: 900 of prompts, 180 of replies" in text
    assert "cost: 0.0036" in text and "1 kept replies do not give the gold answer" in text
    assert [f.kind for f in check(out).findings] == ["wrong_teacher"]


def test_the_estimate_sends_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("PRISM_TEACHER_API_KEY")
    data, out = make_data(tmp_path, 10), tmp_path / "taught.jsonl"
    with data.open("a") as file:
        file.write('{"prompt": "no picture?", "images": "none.png", "answer": "x"}\n')
    with endpoint(lambda body, n: right(body)) as server:
        options = ("--num", 2, "--price", 1, 1000, "--instruction", "i" * 394)
        done = teach(data, server.url, out, *options, "--dry-run")
        text = " ".join(done.stdout.split())
        assert done.returncode == 2 and not server.requests and not out.exists()
        assert "10 rows to ask, 2 completions each: 20 requests, at most 60 with 3 tries" in text
        # of a row: 394 + len("<image>Row 0?") characters are 101 tokens, and 32 x 32 pixels one
        assert "estimated tokens: 2,040 of prompts, 8,000 of replies (at most 61,440)" in text
        assert "estimated cost: 8.00, at most about 61.45" in text
        assert "1 row not asked: 1 missing_picture" in text
        data.write_text(data.read_text().splitlines(keepends=True)[3])
        assert teach(data, server.url, out, *options).returncode == 0
        data = make_data(tmp_path, 10)
        text = " ".join(teach(data, server.url, out, *options, "--dry-run").stdout.split())
        assert "9 rows to ask" in text and "360 of replies" in text, "20 tokens each were counted"
        assert "1 row finished before" in text


def test_a_question_and_a_picture_are_enough(tmp_path):
    data, out = make_data(tmp_path, 2), tmp_path / "taught.jsonl"
    rows = [{"Question": r["prompt"], "image": r["images"]} for r in read_jsonl(data)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with endpoint(lambda body, n: right(body)) as server:
        assert teach(data, server.url, out).returncode == 0
        refused = teach(data, server.url, tmp_path / "x.jsonl", "--keep-right")
        assert refused.returncode == 2 and "2 rows not asked: 2 missing_answer" in refused.stdout
        data.write_text('{"caption": "a dog"}\n')
        check_refused(teach(data, server.url, out), "no known format has the fields caption")
    samples = list(load_samples(out))
    assert [len(s.pictures) for s in samples] == [1, 1] and check(out).ok
    assert {s.teacher_parts.answer for s in samples} == {"cat", "dog"}


def test_what_ends_the_run(tmp_path):
    data, out = make_data(tmp_path, 60), tmp_path / "taught.jsonl"
    with endpoint(lambda body, n: Fault(401, body=f"bad key {KEY}")) as server:
        done = teach(data, server.url, out)
        check_refused(
            done, "refuses requests (status 401: 'bad key ***')", "$PRISM_TEACHER_API_KEY"
        )
        assert len(server.requests) <= 8
    with endpoint(lambda body, n: Fault(400, body="unknown field")) as server:
        done = teach(data, server.url, out, "--parallel", 2)
        assert done.returncode == 1 and "20 rows in a row got no reply" in done.stderr
        assert "Traceback" not in done.stderr and len(server.requests) <= 22
    assert KEY not in out.read_text() + journal_path(out).read_text() + done.stdout + done.stderr


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--num", 0], "--num 0: expected 1 or more"),
        (["--temperature", "nan"], "--temperature nan"),
        (["--batch", 3], "--batch has no effect with --base-url"),
        (["--request", "[1]"], "expected a JSON object"),
        (["--request", "{"], "is not JSON"),
        (["--instruction", "@nofile.txt"], "does not exist"),
        (["--card", 12], "--card has no effect"),
        (["--columns", "prompt"], "expected '{ours: theirs"),
    ],
)
def test_arguments_that_are_refused(tmp_path, more, words):
    data = make_data(tmp_path, 1)
    check_refused(teach(data, "http://localhost:1/v1", tmp_path / "out.jsonl", *more), words)


def test_further_refusals(tmp_path):
    data, out = make_data(tmp_path, 1), tmp_path / "out.jsonl"
    check_refused(teach(data, "localhost:8000", out), "--base-url", "is not an http address")
    check_refused(teach(data, "http://u:p@h/v1", out), "more than an address")
    check_refused(teach(data, "http://h/v1", data), "is the data itself")
    check_refused(teach(data, "http://h/v1", tmp_path / "out.json"), "is written as .jsonl")
    base = ("teach", data, "--out", out)
    check_refused(in_process(*base, "--base-url", "http://h/v1"), "needs --model NAME")
    check_refused(in_process(*base, "--local", "tiny", "--rate", 3), "--rate has no effect")
    assert not out.exists() and not journal_path(out).exists()


_COMMAND = (sys.executable, "-m", "prism_lite", "teach")


def started(data: Path, url: str, out: Path, *more: object) -> subprocess.Popen[str]:
    options = ("--base-url", url, "--model", "large", "--out", out, *more)
    return subprocess.Popen(
        [*_COMMAND, str(data), *map(str, options)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished_rows(out: Path) -> set[str]:
    """The ids of complete rows in the file."""
    if not out.exists():
        return set()
    lines = out.read_bytes().split(b"\n")[:-1]
    return {json.loads(line)["id"] for line in lines}


@pytest.mark.slow
def test_twenty_kills_lose_no_row_and_repeat_no_finished_one(tmp_path):
    data, out = make_data(tmp_path / "data", 120), tmp_path / "taught.jsonl"
    rng = Random(3)

    def answer(body, n):
        time.sleep(0.1)
        if rng.random() < 0.1:
            return "no tags"
        return right(body) if rng.random() > 0.1 else Fault(500)

    options = ("--parallel", 2, "--num", 2, "--tries", 9)
    with endpoint(answer) as server:
        for kill in range(20):
            num_before, num_journal = len(server.requests), len(read_jsonl(journal_path(out)))
            before = finished_rows(out)
            process = started(data, server.url, out, *options)
            deadline = time.monotonic() + 60
            while len(server.requests) < num_before + 5 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(rng.random() * 0.2)
            process.send_signal(signal.SIGKILL)
            process.wait()
            asked = {number(r) + 1 for r in server.requests[num_before:]}
            assert len(asked) >= 1 and not {str(i) for i in asked} & before, kill
            assert len(read_jsonl(journal_path(out))) >= num_journal
            assert before <= finished_rows(out), "a kill takes no row"
        before, num_before = finished_rows(out), len(server.requests)
        assert 20 < len(before) < 120
        process = started(data, server.url, out, *options)
        text, _ = process.communicate(timeout=120)
        assert process.returncode == 0, text
        asked = {str(number(r) + 1) for r in server.requests[num_before:]}
        assert not asked & before
    ids = [json.loads(line)["id"] for line in out.read_text().splitlines()]
    assert sorted(map(int, ids)) == list(range(1, 121)), "every row once"
    assert check(out).ok and all(len(s.teachers) in (1, 2) for s in load_samples(out))
    kept = [
        r for r in read_jsonl(journal_path(out)) if "reply" in r and r["reply"]["kind"] == "kept"
    ]
    assert len(kept) == 240, "no kept reply was thrown away: two for each row"
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes()
    assert KEY not in text


@pytest.mark.slow
def test_ctrl_c_stores_the_replies_on_their_way(tmp_path):
    data, out = make_data(tmp_path / "data", 50), tmp_path / "taught.jsonl"

    def answer(body, n):
        time.sleep(0.5)
        return right(body)

    with endpoint(answer) as server:
        process = started(data, server.url, out, "--parallel", 4)
        deadline = time.monotonic() + 60
        while len(server.requests) < 9 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=30)
        assert process.returncode == 3, text
        assert len(finished_rows(out)) == len(server.requests) < 20, "every reply was waited for"
        assert "resume with: prism-lite teach" in text and "Traceback" not in text
        assert f"{len(server.requests)} rows with teacher text" in " ".join(text.split())
        # a second Ctrl-C waits for nothing
        process = started(data, server.url, out, "--parallel", 4)
        num = len(server.requests)
        while len(server.requests) < num + 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=30)
        assert process.returncode == 3 and "Traceback" not in text, text


@pytest.mark.slow
def test_memory_stays_flat(tmp_path):
    """The resident memory after a quarter of the rows and at the end; 5,000 rows: 59 and 66 MiB."""
    data, out = make_data(tmp_path / "data", 400), tmp_path / "taught.jsonl"
    resident: dict[int, float] = {}
    with endpoint(lambda body, n: right(body)) as server:
        process = started(data, server.url, out)
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            if "VmRSS" in status:
                kib = int(status.partition("VmRSS:")[2].split()[0])
                resident[len(finished_rows(out))] = kib / 1024
            time.sleep(0.1)
    assert process.returncode == 0
    early = max(mib for num, mib in resident.items() if 50 <= num <= 150)
    late = max(mib for num, mib in resident.items() if num >= 300)
    assert late < early + 8, resident


def test_teach_at_an_endpoint_imports_no_torch(tmp_path):
    data = make_data(tmp_path, 1)
    program = (
        "import sys\nfrom prism_lite.__main__ import main\n"
        "code = main(sys.argv[1:])\nassert 'torch' not in sys.modules\nsys.exit(code)"
    )
    with endpoint(lambda body, n: right(body)) as server:
        options = ("--base-url", server.url, "--model", "m", "--out", tmp_path / "o.jsonl")
        done = subprocess.run(
            [sys.executable, "-c", program, "teach", str(data), *map(str, options)],
            cwd=REPOSITORY, env=os.environ, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
