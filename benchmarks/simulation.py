#!/usr/bin/env python3
"""Discrete-event simulation of the render service.

    benchmarks/simulation.py --check out/scaling.json      # against measured runs
    benchmarks/simulation.py --gpus 10 48 200 1000 2000    # saturation
    benchmarks/simulation.py --catalog 1000000 --gpus 2000 # with lost nodes, spot notices, swaps

A cell is a renderer (an event loop, and cores that encode) with its samplers. Cells share nothing
but storage, so each is simulated by itself. CPU times per chunk and frame come from
benchmarks/scaling.py (--costs), the seconds per frame of a GPU from --seconds.
"""

import argparse
import dataclasses
import itertools
import json
import random
import statistics
import sys
from collections import OrderedDict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import simpy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serve.deployments.cells import cell_sizes, cells_by_preference

Process = Generator[Any, Any, Any]
MAX_HELD = 8
AFFINITY_CANDIDATES = 64


@dataclass(frozen=True, kw_only=True)
class Costs:
    """CPU seconds of the service's own work.

    The defaults are the stages measured at 640x512 (docs/scaling.md); that of the loop contains the
    latency of a call and is an upper bound.

    Attributes:
        loop: of the renderer's event loop per chunk.
        encode: of the renderer's threads per frame.
        sampler: of a sampler per chunk: reading, writing, answering.
        prepare: of a sampler per video.
        latency: seconds between the steps of a video that no core is busy with: polls, wake-ups.
    """

    loop: float = 0.012
    encode: float = 0.011
    sampler: float = 0.0032
    prepare: float = 0.019
    latency: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A cell and its work. Times are seconds.

    Attributes:
        samplers: of the cell.
        videos: of the cell.
        frames: of each video.
        chunk: frames per call.
        seconds: per frame on a GPU.
        calls_per_sampler: calls that a sampler holds.
        videos_at_once: videos in progress.
        encoders: cores that encode; 0 means that all work shares `cores`.
        cores: of the machine that everything runs on; 0 means one core per sampler and renderer.
        gpus_per_node: samplers that are lost together.
        node_mtbf: mean time between failures of a node; 0 means never.
        spot: share of the lost nodes with a notice, whose chunks finish.
        cold_start: until a lost node is replaced and its model is loaded.
        renderer_mtbf: of the renderer; 0 means never.
        takeover: until a dead renderer's videos are resumed: restart or lease.
        subjects: different subjects, drawn uniformly; 0 means none.
        subjects_in_memory: of a sampler.
        swap: to load a subject's weights.
        segments: encode in the samplers; the renderer joins segments without encoding.
    """

    samplers: int
    videos: int
    frames: int = 60
    chunk: int = 8
    seconds: float = 2.0
    calls_per_sampler: int = 2
    videos_at_once: int = 16
    encoders: int = 8
    cores: int = 0
    gpus_per_node: int = 8
    node_mtbf: float = 0.0
    spot: float = 0.5
    cold_start: float = 360.0
    renderer_mtbf: float = 0.0
    takeover: float = 15.0
    subjects: int = 0
    subjects_in_memory: int = 4
    swap: float = 3.0
    segments: bool = False


@dataclass(kw_only=True)
class Result:
    """What a simulated cell did. Times are seconds."""

    makespan: float = 0.0
    gpu_busy: float = 0.0
    loop_busy: float = 0.0
    encode_busy: float = 0.0
    lost_chunks: int = 0
    lost_nodes: int = 0
    swaps: int = 0
    chunks: int = 0


class Sampler:
    """One GPU: a queue of calls that it works on in order."""

    def __init__(self, env: simpy.Environment, node: int) -> None:
        self.node = node
        self.queue: simpy.Store = simpy.Store(env)
        self.held = 0
        self.alive = True
        self.weights: OrderedDict[int, None] = OrderedDict()
        self.process: Any = None


class Cell:
    """A renderer with its samplers.

    Args:
        setup: of the cell.
        costs: of its work.
        seed: of failures and subjects.
    """

    def __init__(self, setup: Setup, costs: Costs, seed: int = 0) -> None:
        self.setup, self.costs, self.random = setup, costs, random.Random(seed)
        self.env = env = simpy.Environment()
        self.result = Result()
        shared = simpy.Resource(env, setup.cores) if setup.cores else None
        self.cores = shared
        self.loop = simpy.Resource(env, 1)
        self.encoders = simpy.Resource(env, setup.encoders) if setup.encoders else shared
        self.slots = simpy.Resource(env, setup.videos_at_once)
        self.samplers = [Sampler(env, i // setup.gpus_per_node) for i in range(setup.samplers)]
        self.by_held: list[dict[Sampler, None]] = [{} for _ in range(MAX_HELD + 1)]
        """Living samplers by the number of calls that they hold."""
        for sampler in self.samplers:
            self._hold(sampler, 0)
        self.free = simpy.Container(
            env, init=setup.samplers * setup.calls_per_sampler, capacity=float("inf")
        )
        self.last = env.event()
        self.unfinished = setup.videos

    def run(self) -> Result:
        """Simulates until the last video is written."""
        for sampler in self.samplers:
            sampler.process = self.env.process(self._sample(sampler))
        if self.setup.node_mtbf:
            for node in range(self.samplers[-1].node + 1):
                self.env.process(self._lose_node(node))
        for _ in range(self.setup.videos):
            self.env.process(self._video())
        self.env.run(until=self.last)
        self.result.makespan = self.env.now
        return self.result

    def _work(self, seconds: float) -> Process:
        """Uses a core of the shared machine, or a core of one's own."""
        if self.cores is None:
            yield self.env.timeout(seconds)
            return
        with self.cores.request() as core:
            yield core
            yield self.env.timeout(seconds)

    def _video(self) -> Process:
        setup, costs, env = self.setup, self.costs, self.env
        with self.slots.request() as slot:
            yield slot
            subject = self.random.randrange(setup.subjects) if setup.subjects else -1
            yield env.timeout(costs.latency)
            yield from self._work(costs.prepare)
            sizes = [
                min(setup.chunk, setup.frames - start)
                for start in range(0, setup.frames, setup.chunk)
            ]
            # Encoding follows the frames; one thread per video.
            arrived: simpy.Store = simpy.Store(env)
            encoding = env.process(self._encode(arrived, len(sizes)))
            yield env.all_of(
                [env.process(self._chunk(size, subject, arrived)) for size in sizes] + [encoding]
            )
            yield env.timeout(costs.latency)
        self.unfinished -= 1
        if not self.unfinished:
            self.last.succeed()

    def _chunk(self, size: int, subject: int, arrived: simpy.Store) -> Process:
        env, costs = self.env, self.costs
        while True:
            yield self.free.get(1)
            with self.loop.request() as loop:
                yield loop
                yield from self._work(costs.loop)
                self.result.loop_busy += costs.loop
            while not any(self.by_held):
                yield env.timeout(1)
            sampler = self._least_loaded(subject)
            self._hold(sampler, sampler.held + 1)
            done = env.event()
            yield sampler.queue.put((size, subject, done))
            ok = yield done
            if ok:
                yield arrived.put(size)
                return
            self.result.lost_chunks += 1

    def _least_loaded(self, subject: int) -> Sampler:
        """A sampler with the fewest calls; of some of these, one with the subject's weights."""
        bucket = next(bucket for bucket in self.by_held if bucket)
        first = list(itertools.islice(bucket, AFFINITY_CANDIDATES if subject >= 0 else 1))
        return min(first, key=lambda one: subject not in one.weights)

    def _hold(self, sampler: Sampler, held: int) -> None:
        """Sets the calls of a sampler, and its place in the order of choice."""
        self.by_held[min(sampler.held, MAX_HELD)].pop(sampler, None)
        sampler.held = held
        if sampler.alive:
            self.by_held[min(held, MAX_HELD)][sampler] = None

    def _set_alive(self, sampler: Sampler, alive: bool) -> None:
        sampler.alive = alive
        self._hold(sampler, sampler.held)

    def _encode(self, arrived: simpy.Store, count: int) -> Process:
        for _ in range(count):
            size = yield arrived.get()
            if self.setup.segments:
                continue
            assert self.encoders is not None
            with self.encoders.request() as core:
                yield core
                yield self.env.timeout(self.costs.encode * size)
                self.result.encode_busy += self.costs.encode * size

    def _sample(self, sampler: Sampler) -> Process:
        setup, env = self.setup, self.env
        while True:
            current, request = None, sampler.queue.get()
            try:
                current = yield request
                size, subject, done = current
                if subject >= 0 and subject not in sampler.weights:
                    self.result.swaps += 1
                    yield env.timeout(setup.swap)
                    sampler.weights[subject] = None
                    if len(sampler.weights) > setup.subjects_in_memory:
                        sampler.weights.popitem(last=False)
                work = setup.seconds * size
                if setup.segments:
                    # Frames are encoded by another thread while the next ones are rendered.
                    work = max(work, self.costs.encode * size)
                yield env.timeout(work)
                self.result.gpu_busy += work
                self.result.chunks += 1
                yield from self._work(self.costs.sampler)
                self._hold(sampler, sampler.held - 1)
                done.succeed(True)
                self.free.put(1)
            except simpy.Interrupt:
                # An idle sampler must not take a call that is queued after its return.
                request.cancel()
                lost = [current] if current else []
                lost += list(sampler.queue.items)
                sampler.queue.items.clear()
                for _, _, event in lost:
                    if not event.triggered:
                        event.succeed(False)
                        self.free.put(1)
                self._hold(sampler, 0)
                sampler.weights.clear()
                yield env.timeout(setup.cold_start)
                self._set_alive(sampler, True)

    def _lose_node(self, node: int) -> Process:
        setup, env = self.setup, self.env
        mine = [sampler for sampler in self.samplers if sampler.node == node]
        while True:
            yield env.timeout(self.random.expovariate(1 / setup.node_mtbf))
            if not all(sampler.alive for sampler in mine):
                continue
            self.result.lost_nodes += 1
            for sampler in mine:
                self._set_alive(sampler, False)
            if self.random.random() < setup.spot:
                # The notice is long enough for what the samplers hold.
                while any(sampler.held for sampler in mine):
                    yield env.timeout(1)
            for sampler in mine:
                sampler.process.interrupt()


def measured_costs(rows: Sequence[dict[str, float]]) -> Costs:
    """Costs from the output of benchmarks/scaling.py.

    What the renderer uses per frame is split into encoding, by the stage measured by itself, and
    the rest, which is the event loop's.
    """
    stages = next(row for row in rows if "encode_per_frame" in row)
    runs = [row for row in rows if "replicas" in row]
    largest = max(runs, key=lambda row: row["frames"])
    encode = stages["encode_per_frame"] / 1000
    per_frame = largest["renderer_cpu_ms_per_frame"] / 1000
    loop = max(0.001, (per_frame - min(encode, per_frame)) * largest["chunk"])
    return Costs(
        loop=loop,
        encode=encode,
        sampler=largest["samplers_cpu_ms_per_chunk"] / 1000,
        prepare=stages["prepare_per_video"] / 1000,
        latency=0.1,
    )


def check(rows: Sequence[dict[str, float]], cores: int) -> list[tuple[dict[str, float], float]]:
    """Measured runs and the time that the simulation predicts for each."""
    costs = measured_costs(rows)
    found: list[tuple[dict[str, float], float]] = []
    for row in rows:
        if "replicas" not in row:
            continue
        setup = Setup(
            samplers=int(row["replicas"]),
            videos=int(row["videos"]),
            frames=int(row["frames"] / row["videos"]),
            chunk=int(row["chunk"]),
            seconds=row["seconds_per_frame"],
            videos_at_once=int(row["videos"]),
            encoders=0,
            cores=cores,
        )
        found.append((row, Cell(setup, costs).run().makespan))
    return found


def saturation(setup: Setup, costs: Costs, gpus: int, per_cell: int) -> dict[str, float]:
    """Utilisation of a cluster of so many GPUs, each cell with its share of the videos."""
    sizes = cell_sizes(gpus, per_cell)
    cell = dataclasses.replace(setup, samplers=max(sizes))
    result = Cell(cell, costs).run()
    return {
        "gpus": gpus,
        "cells": len(sizes),
        "gpu_utilisation": result.gpu_busy / (result.makespan * cell.samplers),
        "loop_utilisation": result.loop_busy / result.makespan,
        "encoder_utilisation": result.encode_busy / (result.makespan * max(1, cell.encoders)),
        "frames_per_second": len(sizes) * cell.videos * cell.frames / result.makespan,
    }


def catalog(setup: Setup, costs: Costs, gpus: int, per_cell: int, items: int) -> dict[str, float]:
    """Hours for a catalogue, from a simulated sample of the videos of each cell.

    Videos are hashed over cells as the service does; the last cell decides.
    """
    sizes = cell_sizes(gpus, per_cell)
    sample = min(items, 50_000)
    shares = [0] * len(sizes)
    for number in range(sample):
        shares[cells_by_preference(f"video_{number}", len(sizes))[0]] += 1
    results = [
        Cell(dataclasses.replace(setup, samplers=size), costs, seed).run()
        for seed, size in enumerate(sizes)
    ]
    rates = [setup.videos / result.makespan for result in results]
    hours = [
        items * share / sample / rate / 3600 for share, rate in zip(shares, rates, strict=True)
    ]
    chunks = sum(result.chunks for result in results)
    gpu = [
        result.gpu_busy / (result.makespan * size)
        for result, size in zip(results, sizes, strict=True)
    ]
    return {
        "gpus": gpus,
        "cells": len(sizes),
        "hours": max(hours),
        "hours_mean": statistics.mean(hours),
        "gpu_utilisation": statistics.mean(gpu),
        "lost_chunks_percent": 100 * sum(result.lost_chunks for result in results) / chunks,
        "swaps_per_video": sum(r.swaps for r in results) / (setup.videos * len(sizes)),
        "lost_nodes": sum(result.lost_nodes for result in results),
    }


def print_row(row: dict[str, float]) -> None:
    """One line of a table."""
    print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 1 if a prediction is off by more than --tolerance."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", type=Path, help="output of benchmarks/scaling.py")
    parser.add_argument("--costs", type=Path, help="take CPU times from there")
    parser.add_argument("--tolerance", type=float, default=0.1)
    parser.add_argument("--cores", type=int, default=2, help="of the machine of --check")
    parser.add_argument("--gpus", type=int, nargs="+", default=[10, 48, 200, 1000, 2000])
    parser.add_argument("--per-cell", type=int, nargs="+", default=[10**6, 64])
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.5, 2.0, 18.0])
    parser.add_argument("--videos", type=int, default=0, help="of a cell; default 3 per sampler")
    parser.add_argument("--catalog", type=int, default=0, help="items; simulates one instead")
    parser.add_argument("--node-mtbf-hours", type=float, default=24)
    parser.add_argument("--subjects", type=int, default=0)
    parser.add_argument("--segments", action="store_true", help="encode in the samplers")
    args = parser.parse_args(argv)
    if args.check:
        worst = 0.0
        for row, predicted in check(json.loads(args.check.read_text("utf-8")), args.cores):
            error = predicted / row["seconds"] - 1
            worst = max(worst, abs(error))
            print_row(
                {name: row[name] for name in ("replicas", "videos", "frames", "seconds")}
                | {"predicted": predicted, "error_percent": 100 * error}
            )
        return int(worst > args.tolerance)
    costs = measured_costs(json.loads(args.costs.read_text("utf-8"))) if args.costs else Costs()
    print(f"# {costs}")
    for seconds in args.seconds:
        for gpus in args.gpus:
            for per_cell in args.per_cell:
                size = max(cell_sizes(gpus, per_cell))
                setup = Setup(
                    samplers=size,
                    videos=args.videos or 3 * size,
                    seconds=seconds,
                    videos_at_once=max(4, size // 2),
                    segments=args.segments,
                )
                row: dict[str, float] = {"seconds_per_frame": seconds}
                if args.catalog:
                    setup = dataclasses.replace(
                        setup, node_mtbf=3600 * args.node_mtbf_hours, subjects=args.subjects
                    )
                    row |= catalog(setup, costs, gpus, per_cell, args.catalog)
                else:
                    row |= saturation(setup, costs, gpus, per_cell)
                print_row(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
