"""Nobody gets in: other host names and origins, frames, uploads that stay or that decode to gigabytes."""

from __future__ import annotations

import gzip
import lzma
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from demo import decoded_size, uploads
from demo.headers import LOCAL_HOSTS, OwnHostsOnly
from tests.pipeline.commands import REPOSITORY


def status(url: str, **headers: str) -> int:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_page_under_another_host_name_gets_403(sample_url):
    port = urlsplit(sample_url).port
    assert status(sample_url) == 200
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", "LOCALHOST"):
        assert status(sample_url, Host=host) == 200, host
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "0.0.0.0", ""):
        assert status(sample_url, Host=host) in (400, 403), host
    for path in ("config", "gradio_api/info", "gradio_api/queue/data?session_hash=a"):
        assert status(f"{sample_url}{path}", Host="evil.example") == 403, path


def test_a_request_from_another_origin_gets_403(sample_url):
    assert status(sample_url, Origin=sample_url.rstrip("/")) == 200
    for origin in ("http://evil.example", "https://127.0.0.1.evil.example", "null"):
        assert status(sample_url, Origin=origin) == 403, origin


def test_no_other_page_may_frame_it(sample_url):
    with urllib.request.urlopen(sample_url, timeout=20) as answer:
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]


async def _call(scope: dict) -> list[dict]:
    sent: list[dict] = []

    async def app(_scope, _receive, send) -> None:
        await send({"type": "reached"})

    async def send(message) -> None:
        sent.append(dict(message))

    await OwnHostsOnly(app, {*LOCAL_HOSTS, "proxy.example"})(scope, None, send)  # type: ignore
    return sent


@pytest.mark.parametrize(
    ("kind", "host", "first"),
    [
        ("websocket", b"evil.example", "websocket.close"),
        ("websocket", b"localhost:7860", "reached"),
        ("http", b"proxy.example", "reached"),
        ("http", b"evil.example", "http.response.start"),
    ],
)
def test_web_sockets_and_named_proxies(kind, host, first):
    import asyncio

    scope = {"type": kind, "headers": [(b"host", host)], "path": "/", "method": "GET"}
    assert asyncio.run(_call(scope))[0]["type"] == first


def test_uploads_of_a_killed_process_are_removed_by_the_next_one(tmp_path):
    code = (
        "import os, time; from demo import uploads; uploads.make_uploads_private(); "
        "open(os.environ['GRADIO_TEMP_DIR'] + '/secret.png', 'w').write('x'); "
        "print(os.environ['GRADIO_TEMP_DIR'], flush=True); time.sleep(60)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GRADIO_TEMP_DIR"}
    environment |= {"TMPDIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o77 == 0
    (tmp_path / "prism_lite_demo_other").mkdir()  # has no lock: not ours
    uploads.remove_abandoned(tmp_path)
    assert (folder / "secret.png").exists(), "the process lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    uploads.remove_abandoned(tmp_path)
    assert not folder.exists() and (tmp_path / "prism_lite_demo_other").exists()
    assert tempfile.gettempdir() != str(tmp_path)


@pytest.mark.parametrize(("suffix", "module"), [(".gz", gzip), (".xz", lzma)])
def test_an_upload_that_decodes_to_too_much_is_refused(tmp_path, monkeypatch, suffix, module):
    monkeypatch.setattr(decoded_size, "MAX_DECODED_BYTES", 2**20)
    bomb, small = tmp_path / f"a.jsonl{suffix}", tmp_path / f"b.jsonl{suffix}"
    with module.open(bomb, "wb") as file:
        file.write(b" " * 2**22)
    with module.open(small, "wb") as file:
        file.write(b"{}\n")
    assert bomb.stat().st_size < 10_000
    with pytest.raises(ValueError, match="more than 1 MiB when it is decoded"):
        decoded_size.check_decoded_size(bomb)
    decoded_size.check_decoded_size(small)
    bomb.write_bytes(bomb.read_bytes()[:40])  # broken: the check of its rows says so
    decoded_size.check_decoded_size(bomb)


def test_a_parquet_file_that_decodes_to_too_much_is_refused(tmp_path, monkeypatch):
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setattr(decoded_size, "MAX_DECODED_BYTES", 2**20)
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"query": ["x" * 1000] * 5000})
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match="more than 1 MiB"):
        decoded_size.check_decoded_size(path)
