#!/usr/bin/env python3
"""Hostile requests against the service, and their costs.

    benchmarks/attacks.py
    benchmarks/attacks.py --sockets 300 --seconds 20

The HTTP application runs in a process of its own, on loopback, with a backend that renders nothing;
attackers and a client with a key run here. Each line is one attack with what was measured and the
bound; the exit code is 1 if a bound is exceeded.
"""

import argparse
import asyncio
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dreampose.io import video
from serve.keys import Keys

ROOT = Path(__file__).resolve().parents[1]
MAX_P99_SECONDS = 1.0
MAX_MEGABYTES = 300


class IdleBackend:
    """Backend whose work never ends; `broken` in storage makes it unready."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def render(self, folder: str) -> Any:
        """Waits."""
        del folder
        await asyncio.sleep(3600)

    async def extract(self, upload: str, target: str, estimator: str) -> None:
        """Waits."""
        del upload, target, estimator
        await asyncio.sleep(3600)

    async def finetune(self, job: str) -> None:
        """Waits."""
        del job
        await asyncio.sleep(3600)

    async def ready(self) -> None:
        """Hangs once `broken` exists, as a renderer that does not answer."""
        if (self.folder / "broken").exists():
            await asyncio.sleep(3600)


def run_server(folder: Path, port: int) -> None:
    """Serves the application until it is killed."""
    import uvicorn

    from serve.api import build
    from serve.config import Settings
    from serve.service.metrics import NullMetrics
    from serve.service.service import Service

    settings = Settings(
        model=str(ROOT / "models" / "catwalk"),
        storage=str(folder / "videos"),
        motions=str(folder / "motions"),
        subjects=str(folder / "subjects"),
        keys=str(folder / "keys.txt"),
        posts_per_minute=10**6,
        requests_per_minute=10**6,
    )
    service = Service(settings, IdleBackend(folder), NullMetrics())
    uvicorn.run(build(service, manage=True), host="127.0.0.1", port=port, log_level="warning")


class PeakMemory:
    """Largest resident memory of a process in megabytes, above that at the start."""

    def __init__(self, pid: int) -> None:
        self.process = psutil.Process(pid)
        self.before = self.peak = self.process.memory_info().rss
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self.stopped.wait(0.01):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __enter__(self) -> "PeakMemory":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()

    @property
    def megabytes(self) -> float:
        """Rise so far."""
        return (self.peak - self.before) / 2**20


def drip(port: int, count: int, stop: threading.Event, key: str = "") -> list[socket.socket]:
    """Opens sockets that send a body byte by byte until `stop`; replaces closed ones."""
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\n{authorization}"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000000\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="motion"; filename="m"\r\n\r\n'
    ).encode()
    opened: list[socket.socket] = []

    def connect() -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(head)
        return connection

    def send() -> None:
        while not stop.is_set():
            for index, connection in enumerate(opened):
                try:
                    connection.sendall(b"x")
                except OSError:
                    connection.close()
                    opened[index] = connect()
            stop.wait(0.5)

    opened.extend(connect() for _ in range(count))
    threading.Thread(target=send, daemon=True).start()
    return opened


def p99_of_gets(client: httpx.Client, seconds: float) -> tuple[float, int]:
    """99th percentile of the time of a keyed GET in seconds, and the number of requests."""
    times: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        client.get("/v1/videos").raise_for_status()
        times.append(time.monotonic() - began)
        time.sleep(0.02)
    return statistics.quantiles(times, n=100)[98], len(times)


def png(width: int, height: int) -> bytes:
    """A photo of a few kilobytes with many pixels."""
    buffer = io.BytesIO()
    rows = np.linspace(0, 255, height).astype(np.uint8)
    pixels = np.repeat(np.repeat(rows[:, None, None], width, axis=1), 3, axis=2)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def attacks(args: argparse.Namespace, port: int, pid: int, key: str, folder: Path) -> list[bool]:
    """Runs every attack; prints a line for each and returns whether it was bounded."""
    passed: list[bool] = []

    def report(name: str, measured: str, ok: bool) -> None:
        passed.append(ok)
        print(f"{'ok  ' if ok else 'FAIL'} {name}: {measured}", flush=True)

    base = f"http://127.0.0.1:{port}"
    client = httpx.Client(base_url=base, timeout=900, headers={"Authorization": f"Bearer {key}"})
    small = png(64, 64)

    quiet, _ = p99_of_gets(client, args.seconds / 4)
    stop = threading.Event()
    drip(port, args.sockets, stop)
    p99, count = p99_of_gets(client, args.seconds)
    stop.set()
    report(
        f"{args.sockets} slow sockets without a key",
        f"p99 of {count} keyed GETs {p99:.3f} s ({quiet:.3f} s without them)",
        p99 < MAX_P99_SECONDS,
    )
    stop = threading.Event()
    slow = drip(port, 40, stop, key)
    p99, count = p99_of_gets(client, args.seconds / 2)
    refused = client.post("/v1/motions", files={"file": small}).status_code
    stop.set()
    for connection in slow:
        connection.close()
    time.sleep(1)
    report(
        "40 slow uploads with a key",
        f"p99 of {count} keyed GETs {p99:.3f} s, a further upload gets {refused}",
        p99 < MAX_P99_SECONDS and refused == 429,
    )

    for name, width, height in (("16384x3000", 16384, 3000), ("7000x7000", 7000, 7000)):
        photo = png(width, height)
        with PeakMemory(pid) as memory:
            files = [("input_reference", photo)] * 8
            status = client.post("/v1/videos", files=files).status_code
        report(
            f"eight photos of {name} ({len(photo) >> 10} KB each)",
            f"status {status}, memory rises by {memory.megabytes:.0f} MB",
            status == 200 and memory.megabytes < MAX_MEGABYTES,
        )

    path = folder / "clip.mp4"
    video.write(path, np.zeros((10, 64, 48, 3), np.uint8), 12.5)
    padding = (8 + 20 * 2**20).to_bytes(4, "big") + b"free" + bytes(20 * 2**20)
    padded = path.read_bytes() + padding
    motion = client.post("/v1/motions", files={"file": padded}).raise_for_status().json()
    report(
        "a motion with 20 MB of padding",
        f"{motion['num_bytes']} bytes are stored",
        motion["num_bytes"] < 10**5,
    )

    def listed() -> int:
        return len(client.get("/v1/videos").json()["data"])

    before = listed()
    ids = {
        client.post(
            "/v1/videos", files={"input_reference": small}, headers={"Idempotency-Key": "a"}
        ).json()["id"]
        for _ in range(3)
    }
    report(
        "three POSTs with one Idempotency-Key",
        f"{len(ids)} id, {listed() - before} more video",
        len(ids) == 1 and listed() == before + 1,
    )
    status = client.post("/v1/videos", json={"prompt": "walk"}).status_code
    report("a JSON body", f"status {status}", status == 415)
    answer = httpx.get(f"{base}/v1/videos")
    headers = answer.headers
    report(
        "a request without a key",
        f"status {answer.status_code}, {headers['x-content-type-options']}, "
        f"{headers['cache-control']}",
        (answer.status_code, headers["cache-control"]) == (401, "no-store"),
    )
    (folder / "broken").touch()
    time.sleep(1)
    began = time.monotonic()
    status = httpx.get(f"{base}/readyz", timeout=30).status_code
    took = time.monotonic() - began
    report("/readyz of a hanging renderer", f"status {status} in {took:.2f} s", status == 503)
    mode = (folder / "videos").stat().st_mode & 0o777
    report("permissions of the storage folder", oct(mode), mode == 0o700)
    return passed


def wait_for(url: str, condition: Callable[[], bool]) -> None:
    """Waits until the server answers.

    Raises:
        RuntimeError: it ended, or does not answer for two minutes.
    """
    until = time.monotonic() + 120
    while time.monotonic() < until and condition():
        try:
            httpx.get(url, timeout=5)
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError("the server did not start")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sockets", type=int, default=300, help="slow ones without a key")
    parser.add_argument("--seconds", type=float, default=20, help="of measuring under an attack")
    parser.add_argument("--serve", nargs=2, metavar=("FOLDER", "PORT"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        run_server(Path(args.serve[0]), int(args.serve[1]))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        key = Keys(folder / "keys.txt").add("client")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, __file__, "--serve", name, str(port)]
        with subprocess.Popen(command, cwd=ROOT) as server:
            try:
                wait_for(f"http://127.0.0.1:{port}/healthz", lambda: server.poll() is None)
                print(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg()[0]}))
                passed = attacks(args, port, server.pid, key, folder)
            finally:
                server.kill()
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
