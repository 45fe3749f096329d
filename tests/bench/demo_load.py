"""Ten visitors of the demo at once: `python -m tests.bench.demo_load [SECONDS]`.

Each asks for recorded completions again and again and fetches the picture; prints answers, errors (of the
visitors, and tracebacks in the server's log), and the server's memory.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from gradio_client import Client

from demo.runs.folder import SAMPLE_ID
from demo.screens.answers import GREEDY

NUM_CLIENTS = 10
SERVER = """
import sys, time
from pathlib import Path
from demo.app import launch
from demo.runs.folder import open_home
_, url, _ = launch(open_home(None, root=Path(sys.argv[1])), is_open=False)
print(url, flush=True)
time.sleep(3600)
"""


def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as empty:
        log = Path(empty) / "server.log"
        started_s = time.perf_counter()
        with log.open("w") as sink:
            server = subprocess.Popen(
                [sys.executable, "-c", SERVER, empty],
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
            )
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            print(f"serving after {time.perf_counter() - started_s:.1f} s")
            _load(url, psutil.Process(server.pid), seconds)
        finally:
            server.kill()
            server.wait()
        lines = log.read_text().splitlines()
        faults = [line for line in lines if "Error: " in line or line.startswith("ERROR")]
        print(f"server log: {len(lines)} lines, {len(faults)} errors", sorted(set(faults))[:3])


def _load(url: str, server: psutil.Process, seconds: float) -> None:
    clients = [Client(url, verbose=False) for _ in range(NUM_CLIENTS)]
    answered, errors, memory_gib = [0] * NUM_CLIENTS, [], []
    end_s = time.monotonic() + seconds

    def visit(number: int) -> None:
        while time.monotonic() < end_s:
            try:
                clients[number].predict(
                    SAMPLE_ID, "Example", 1 + answered[number] % 6, None, "", 0, GREEDY,
                    None, None, api_name="/compare",
                )  # fmt: skip
                answered[number] += 1
            except (ValueError, RuntimeError, OSError) as error:
                errors.append(str(error))

    threads = [threading.Thread(target=visit, args=(i,)) for i in range(NUM_CLIENTS)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        memory_gib.append(server.memory_info().rss / 2**30)
        time.sleep(1)
    quarter = len(memory_gib) // 4
    print(f"{sum(answered)} answers of {NUM_CLIENTS} clients, {len(errors)} errors", errors[:1])
    print(
        f"server memory {memory_gib[quarter]:.3f} GiB after a quarter of the time, "
        f"{memory_gib[-1]:.3f} at the end"
    )


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
