#!/usr/bin/env python3
"""CPU time and efficiency of the render service without real samplers.

    benchmarks/scaling.py --replicas 1 4 16 --out out/scaling.json
    benchmarks/simulation.py --check out/scaling.json

Except for the ingress everything is what serves users: renderer, Serve's handles, storage,
encoding. Each replica gets the same number of frames (--frames-per-replica), spread over --videos
videos, so that the ideal time is the same for every number of replicas. Sleeping samplers take no
core, so that many replicas fit on few cores; what the cores then do is the overhead of the service
alone. Printed are, per number of replicas, the CPU milliseconds per chunk and per frame of the
renderer, the samplers and the control plane (Serve's controller, raylet, GCS), less what they use
when idle, and the efficiency (ideal over measured time, median of --repeats after one run that is
not counted).

Before that, each stage of the overhead is measured by itself, for frames of the embedded model and
of the paper's; see docs/scaling.md.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import safetensors
import safetensors.numpy
from ray import serve as ray_serve

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster.capacity import one_machine
from dreampose.io.paths import new_file, on_disk
from serve import application
from serve.config import Settings
from serve.deployments.renderer import grpc_handle
from serve.deployments.video_writer import write_result
from serve.service.records import Prepared, RenderRequest
from serve.service.store import Store, VideoFolder

SIZES = {"catwalk": (160, 128), "sd14": (640, 512)}
FPS = 25.0
SHARED_VALUES, POSE_VALUES = 17_600, 10_240
"""Of all frames of a request together, and of each frame: those of the embedded model."""
CHUNK = 4
"""Frames of a call. Twenty frames a replica are five equal rounds of calls."""


def renderer_app(settings: Settings) -> ray_serve.Application:
    """The application on this machine alone."""
    machine = one_machine(cpus=os.cpu_count() or 1)
    return application.renderer_app(settings, application.sampler_allocation(settings, machine))


class SleepingSampler:
    """`serve.deployments.sampler.Sampler` that sleeps instead of rendering.

    The number of frames, the seconds per frame, and the height and width are in the request's
    notes.
    """

    def __init__(self, settings: Settings, num_threads: int) -> None:
        del settings, num_threads
        self.place = asyncio.Lock()
        """One chunk at a time, as in the render thread."""
        self.writer = ThreadPoolExecutor(max_workers=1)
        """Writes in another thread, as the real one does."""
        # Created once: a sleeping sampler takes no core.
        self.frames: dict[tuple[int, ...], np.ndarray] = {}

    async def prepare(self, folder: str) -> Prepared:
        """Writes as many bytes as a real request of the embedded model has."""
        request = VideoFolder(folder).request()
        num_frames = int(request.notes[0])
        tensors = {
            "shared": np.zeros(SHARED_VALUES, np.float32),
            "poses": np.zeros((num_frames, POSE_VALUES), np.float32),
        }
        metadata = {"notes": json.dumps(request.notes)}
        with new_file(VideoFolder(folder).prepared) as part:
            safetensors.numpy.save_file(tensors, part, metadata)
        return Prepared(num_frames=num_frames, fps=FPS, seconds=0.0, warnings=[])

    async def render(self, folder: str, indices: range) -> float:
        """Sleeps for every frame, and writes frames (n H W 3, 8-bit)."""
        async with self.place:
            prepared = on_disk(VideoFolder(folder).prepared)
            with safetensors.safe_open(prepared, framework="np") as file:
                notes = map(float, json.loads(file.metadata()["notes"]))
                num_frames, seconds, height, width = notes
                file.get_tensor("shared")
                # With the neighbours whose poses these frames' windows hold.
                stop = min(indices.stop + 2, int(num_frames))
                _ = file.get_slice("poses")[max(0, indices.start - 2) : stop]
            await asyncio.sleep(seconds * len(indices))
        key = (len(indices), int(height), int(width))
        if key not in self.frames:
            self.frames[key] = picture(*key)
        loop = asyncio.get_running_loop()
        write = VideoFolder(folder).write_chunk
        await loop.run_in_executor(self.writer, write, indices, self.frames[key])
        return seconds * len(indices)

    async def ready(self) -> None:
        """Always ready."""


def picture(count: int, height: int, width: int) -> np.ndarray:
    """Frames (n H W 3, 8-bit) of soft shapes with grain, about as hard to encode as a render."""
    rows, columns = np.mgrid[0:height, 0:width]
    soft = 128 + 90 * np.sin(rows * 9 / height) * np.cos(columns * 7 / width)
    grain = np.arange(height * width, dtype=np.uint32).reshape(height, width) * 2654435761 >> 29
    frame = np.stack([soft + grain, 0.8 * soft + grain, 0.6 * soft + grain], axis=-1)
    return np.stack([frame.astype(np.uint8)] * count)


def notes(num_frames: int, seconds: float, size: tuple[int, int]) -> list[str]:
    """Notes of a request for a sleeping sampler."""
    return [str(value) for value in (num_frames, seconds, *size)]


ROLES = {
    "renderer": ("ServeReplica:scaling:Renderer",),
    "samplers": ("ServeReplica:scaling:Sampler",),
    "control": ("ServeController", "ProxyActor", "raylet", "gcs_server"),
}
"""Parts of the titles of processes, by what they do."""
IDLE_SECONDS = 4.0


def cpu_seconds() -> dict[str, float]:
    """CPU time of the processes of each role that this process has started."""
    used = dict.fromkeys(ROLES, 0.0)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            title = " ".join(process.cmdline())
            role = next((r for r, parts in ROLES.items() if any(p in title for p in parts)), None)
            if role:
                times = process.cpu_times()
                used[role] += times.user + times.system
    return used


def idle_rate() -> dict[str, float]:
    """CPU seconds per second of each role while nothing is rendered."""
    before = cpu_seconds()
    time.sleep(IDLE_SECONDS)
    return {role: (used - before[role]) / IDLE_SECONDS for role, used in cpu_seconds().items()}


def measure(args: argparse.Namespace, num_replicas: int, root: Path) -> list[dict[str, float]]:
    """Renders with some replicas; one row per number of videos."""
    settings = Settings(
        model=str(args.model), storage=str(root), subjects="", replicas=num_replicas,
        chunk_size=CHUNK, threads=1, videos_at_once=max(args.videos),
    )  # fmt: skip
    handle = ray_serve.run(
        renderer_app(settings), name="scaling",
        route_prefix=None,
    )  # fmt: skip
    store = Store(root)

    def render(num_frames: int, seconds: float, count: int) -> float:
        folders = [
            store.create(
                request=RenderRequest(notes=notes(num_frames, seconds, SIZES["catwalk"])),
                photos=[b""], motion=b"", motion_suffix=".npz",
            )
            for _ in range(count)
        ]  # fmt: skip
        began = time.perf_counter()
        calls = [handle.render.remote(str(folder.path)) for folder in folders]
        states = [call.result(timeout_s=3600) for call in calls]
        took = time.perf_counter() - began
        faults = [state.error for state in states if state.status != "completed"]
        if faults:
            raise RuntimeError(f"videos must be completed, got {faults[0]}")
        return took

    rows: list[dict[str, float]] = []
    num_chunks = num_replicas * args.frames_per_replica // CHUNK
    # Every replica and connection is used before the clock starts.
    render(2 * CHUNK * num_replicas, 0.05, 1)
    idle = idle_rate()
    for at_most in args.videos:
        # Videos of whole chunks, at least two: what is cut unevenly keeps replicas unevenly busy.
        most = min(at_most, max(1, num_chunks // 2))
        num_videos = max(count for count in range(1, most + 1) if num_chunks % count == 0)
        num_frames = num_chunks // num_videos * CHUNK
        ideal = num_videos * num_frames * args.seconds / num_replicas
        before = cpu_seconds()
        times = [render(num_frames, args.seconds, num_videos) for _ in range(args.repeats)]
        after = cpu_seconds()
        took = statistics.median(times)
        busy = {role: after[role] - before[role] - idle[role] * sum(times) for role in ROLES}
        total_frames = args.repeats * num_videos * num_frames
        rows.append(
            {
                "replicas": num_replicas,
                "frames": num_videos * num_frames,
                "videos": num_videos,
                "seconds": took,
                "ideal": ideal,
                "efficiency": ideal / took,
                "efficiency_worst": ideal / max(times),
                "overhead_ms_per_frame": 1000 * (took - ideal) / (num_videos * num_frames),
                "seconds_per_frame": args.seconds,
                "chunk": CHUNK,
            }
            | {
                f"{role}_cpu_ms_per_{unit}": 1000 * busy[role] * size / total_frames
                for role in ROLES
                for unit, size in (("chunk", CHUNK), ("frame", 1))
            }
        )
    ray_serve.delete("scaling")
    return rows


def measure_stages(
    args: argparse.Namespace, root: Path, size: tuple[int, int], count: int = 50
) -> dict[str, float]:
    """Milliseconds per frame of each stage by itself.

    `call` is a call of a sampler with its reads and writes, of which `store` writes a chunk;
    `state` writes the video object; `encode` reads the chunks and writes the MP4; `prepare` is a
    call per video.
    """
    settings = Settings(
        model=str(args.model), storage=str(root), subjects="", replicas=1, chunk_size=CHUNK
    )
    ray_serve.run(
        renderer_app(settings), name="scaling",
        route_prefix=None,
    )  # fmt: skip
    sampler = grpc_handle(ray_serve.get_deployment_handle("Sampler", "scaling"))
    request = RenderRequest(notes=notes(count * CHUNK, 0, size))
    folder = Store(root).create(request=request, photos=[b""], motion=b"", motion_suffix=".npz")

    def timed(work: Callable[[int], Any], times: int) -> tuple[float, Any]:
        result = work(0)
        began = time.perf_counter()
        for number in range(times):
            result = work(number)
        return 1000 * (time.perf_counter() - began), result

    milliseconds: dict[str, float] = {}
    path = str(folder.path)
    prepare, _ = timed(lambda _: sampler.prepare.remote(path).result(), 5)
    milliseconds["prepare_per_video"] = prepare / 5
    call, _ = timed(lambda _: sampler.render.remote(path, range(CHUNK)).result(), count)
    ray_serve.delete("scaling")
    chunks = [range(start, start + CHUNK) for start in range(0, count * CHUNK, CHUNK)]
    frames = picture(CHUNK, *size)
    store, _ = timed(lambda number: folder.write_chunk(chunks[number], frames), count)
    state, _ = timed(lambda number: folder.update(progress=number), count)
    began = time.perf_counter()
    write_result(folder, count * CHUNK, FPS)
    encode = 1000 * (time.perf_counter() - began)
    for name, total in (("call", call), ("store", store), ("state", state), ("encode", encode)):
        milliseconds[f"{name}_per_frame"] = total / (count * CHUNK)
    # At most; the rest of a call is not the renderer's alone.
    renderers = (call - store + state + encode) / (count * CHUNK)
    return {**milliseconds, "renderer_per_frame": renderers}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--frames-per-replica", type=int, default=20)
    parser.add_argument(
        "--videos", type=int, nargs="+", default=[1, 4, 16], help="at most; all at once"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of each; medians are printed")
    parser.add_argument("--seconds", type=float, default=0.5, help="that a frame takes")
    parser.add_argument("--model", type=Path, default=Path("models/catwalk"))
    parser.add_argument("--out", type=Path, default=Path("out/scaling.json"))
    args = parser.parse_args(argv)
    # Replaced by name, as the application looks it up; everything around it is the real one.
    application.Sampler = SleepingSampler  # type: ignore[misc]
    print(
        f"{args.frames_per_replica} frames a replica, {args.seconds:g} s a frame, chunks of "
        f"{CHUNK}, up to {args.videos} videos at once, median of {args.repeats}, "
        f"{os.cpu_count()} cores, "
        f"Ray {ray.__version__}"
    )
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(include_dashboard=False, log_to_driver=False, object_store_memory=500 * 2**20)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    root = args.out.parent / "scaling-videos"
    rows: list[dict[str, float]] = []
    try:
        for name, size in SIZES.items():
            rows.append({"height": size[0], "width": size[1]})
            rows[-1] |= measure_stages(args, root.absolute(), size)
            print(
                name, "  ".join(f"{key} {value:.3g}" for key, value in rows[-1].items()), flush=True
            )
        for num_replicas in args.replicas:
            measured = measure(args, num_replicas, root.absolute())
            rows.extend(measured)
            for row in measured:
                print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
            args.out.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    finally:
        shutil.rmtree(root, ignore_errors=True)
        ray_serve.shutdown()
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
