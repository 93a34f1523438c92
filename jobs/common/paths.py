"""Paths that the arguments of jobs take, and checks of them."""

import argparse
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreampose.errors import InputError

ANY = "path or URI"
"""Local, or on any storage: s3://, gs://, abfs://."""
LOCAL = "local path"
"""On a disk that every node of the cluster shares."""

ARGUMENTS: Mapping[str, Mapping[str, str]] = {
    "ablate": {"data": ANY, "vae_model": ANY, "truth": LOCAL, "out": LOCAL},
    "catwalk": {"out": ANY},
    "download": {"deepfashion": LOCAL, "out": LOCAL},
    "evaluate": {"truth": LOCAL, "pred": LOCAL, "out": LOCAL},
    "finetune": {"model": ANY, "subjects": LOCAL, "out": LOCAL},
    "preprocess": {"videos": ANY, "data": ANY, "model": ANY, "out": ANY},
    "render": {"model": LOCAL, "catalog": LOCAL, "subjects": LOCAL, "out": LOCAL},
    "screen": {"videos": ANY, "out": ANY},
    "train": {"data": ANY, "val_data": ANY, "model": ANY, "warm_start": ANY, "out": ANY},
}
"""Arguments of each job that are paths; docs/paths.md is the table to read."""
MAX_NODES = 8
"""Nodes on which local paths are looked up; in larger clusters these stand for the others."""
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:/")


@dataclass(frozen=True, kw_only=True)
class LocalPaths:
    """Local paths of a job, by argument: those it reads, and the folder it writes."""

    read: Mapping[str, str]
    out: str


def check(job: str, args: argparse.Namespace) -> None:
    """Checks that URIs are given only where the job takes them.

    Raises:
        InputError: an argument must be local.
    """
    for name, kind in ARGUMENTS[job].items():
        for value in _values(args, name):
            if kind == LOCAL and _SCHEME.match(value.partition("=")[2] or value):
                raise InputError(
                    f"{name.replace('_', '-')} must be a path on a disk that all nodes share, got "
                    f"{value!r}: docs/paths.md says which arguments take URIs"
                )


def local_paths(job: str, args: argparse.Namespace) -> LocalPaths:
    """The local paths among a job's arguments, absolute."""
    read = {
        name: str(Path(value).expanduser().absolute())
        for name in ARGUMENTS[job]
        for value in _values(args, name)
        if name != "out" and not _SCHEME.match(value) and Path(value).expanduser().exists()
    }
    out = str(args.out)
    return LocalPaths(
        read=read, out="" if _SCHEME.match(out) else str(Path(out).expanduser().absolute())
    )


def require_visible(paths: LocalPaths) -> None:
    """Checks that other nodes of the cluster see the job's local paths.

    Raises:
        InputError: a node does not.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = ray.get_runtime_context().get_node_id()
    others = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeID"] != own][:MAX_NODES]
    if not others:
        return
    token = None
    if paths.out:
        Path(paths.out).mkdir(parents=True, exist_ok=True)
        token = Path(paths.out) / f".{secrets.token_hex(8)}"
        token.touch()
    try:
        wanted = dict(paths.read) | ({"out": str(token)} if token else {})
        make_task: Any = ray.remote(num_cpus=0, max_retries=0)
        look = make_task(_missing)
        answers = [
            look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(wanted)
            for node in others
        ]
        for name in dict.fromkeys(name for answer in _answers(answers) for name in answer):
            shown = paths.out if name == "out" else paths.read[name]
            raise InputError(
                f"{name.replace('_', '-')} must be a path that every node sees, got {shown!r}, "
                "which another node does not have: give a URI (s3://, gs://, abfs://) or a folder "
                "on a shared disk"
            )
    finally:
        if token is not None:
            token.unlink(missing_ok=True)


def _answers(references: list[Any]) -> list[list[str]]:
    """Answers of the nodes that gave one; a node that is lost meanwhile has none."""
    import ray
    from ray.exceptions import RayError

    found: list[list[str]] = []
    for reference in references:
        try:
            found.append(ray.get(reference, timeout=60))
        except RayError:
            continue
    return found


def _missing(paths: Mapping[str, str]) -> list[str]:
    return [name for name, path in paths.items() if not Path(path).exists()]


def _values(args: argparse.Namespace, name: str) -> list[str]:
    value = getattr(args, name, None)
    values: list[Any] = value if isinstance(value, list) else [value]
    return [str(one) for one in values if one]
