"""Watcher of spot notices: drains this node, so that work moves and training saves in time.

    python -m cluster.spot_notice aws          # or gcp, azure: waits for the cloud's notice
    python -m cluster.spot_notice now          # at once, before a pod ends

Draining tells Ray to place nothing more here, and Ray Train to save a checkpoint and to restart
its workers elsewhere; a marker file tells processes of this node.
"""

import argparse
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

POLL_SECONDS = 5.0
MARKER = Path(tempfile.gettempdir()) / "dreampose-node-leaves"
"""Is there once this node has got notice; holds the time at which it goes (seconds, Unix)."""

Get = Callable[..., str | None]
"""The text at a URL of the machine's metadata service; None where there is none (404)."""


def read_url(
    url: str, headers: Mapping[str, str] | None = None, *, method: str = "GET"
) -> str | None:
    """The text at a URL of the machine's metadata service; None where it has none or no answer."""
    request = urllib.request.Request(url, headers=dict(headers or {}), method=method)
    try:
        with urllib.request.urlopen(request, timeout=3) as response:
            return response.read().decode("utf-8")
    except (urllib.error.URLError, TimeoutError, OSError):
        return None


def aws(get: Get) -> bool:
    """Whether AWS will take this spot instance (two minutes before) or wants to (rebalance)."""
    base = "http://169.254.169.254/latest"
    token = get(f"{base}/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "300"}, method="PUT")
    headers = {} if token is None else {"X-aws-ec2-metadata-token": token}
    return get(f"{base}/meta-data/spot/instance-action", headers) is not None


def gcp(get: Get) -> bool:
    """Whether Google Cloud preempts this machine (thirty seconds before)."""
    url = "http://metadata.google.internal/computeMetadata/v1/instance/preempted"
    return (get(url, {"Metadata-Flavor": "Google"}) or "").strip().upper() == "TRUE"


def azure(get: Get) -> bool:
    """Whether Azure evicts this spot machine (thirty seconds before)."""
    url = "http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01"
    text = get(url, {"Metadata": "true"})
    events = json.loads(text).get("Events", []) if text else []
    return any(event.get("EventType") in ("Preempt", "Terminate") for event in events)


CLOUDS: Mapping[str, tuple[Callable[[Get], bool], float]] = {
    "aws": (aws, 110.0),
    "gcp": (gcp, 25.0),
    "azure": (azure, 25.0),
}
"""How to ask each cloud, and the seconds that are left from its notice on."""


def wait_for_notice(
    asked: Callable[[Get], bool], *, get: Get = read_url, poll_seconds: float = POLL_SECONDS
) -> None:
    """Returns when the cloud has given notice."""
    while not asked(get):
        time.sleep(poll_seconds)


def drain_command(node_id: str, address: str, seconds: float) -> list[str]:
    """The command that drains a node of Ray within so many seconds."""
    return [
        *("ray", "drain-node", "--address", address, "--node-id", node_id),
        *("--reason", "DRAIN_NODE_REASON_PREEMPTION"),
        *("--reason-message", "the cloud takes this machine back"),
        *("--deadline-remaining-seconds", str(int(seconds))),
    ]


def leave(seconds: float) -> None:
    """Marks this node as leaving and drains it.

    Raises:
        subprocess.CalledProcessError: Ray does not run here or refuses.
    """
    temporary = MARKER.with_suffix(f".{os.getpid()}")
    temporary.write_text(str(time.time() + seconds), "utf-8")
    temporary.replace(MARKER)
    address, node_id = _this_node()
    subprocess.run(drain_command(node_id, address, seconds), check=True)


def is_leaving() -> bool:
    """Whether this node has got notice. Cheap enough for every step of a training."""
    return MARKER.exists()


def wait_until_idle(seconds: float, *, poll_seconds: float = 2.0) -> None:
    """Returns when no task or actor runs on this machine any more, or after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(_is_worker(name) for name in _process_names()):
        time.sleep(poll_seconds)


def _is_worker(name: str) -> bool:
    """Whether a process works for Ray: its name is `ray::` and what it runs, or `ray::IDLE`."""
    return name.startswith("ray::") and not name.startswith("ray::IDLE")


def _process_names() -> list[str]:
    names: list[str] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                names.append((folder / "cmdline").read_bytes().decode("utf-8", "replace"))
    return names


def _this_node() -> tuple[str, str]:
    """Address of the head, and this node's id, from the node's own processes."""
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    try:
        context = ray.get_runtime_context()
        return context.gcs_address, context.get_node_id()
    finally:
        ray.shutdown()


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(prog="cluster.spot_notice", description=__doc__)
    parser.add_argument("cloud", choices=[*CLOUDS, "now"], help="whose notice; now: do not wait")
    parser.add_argument("--seconds", type=float, help="that are left from the notice on")
    args = parser.parse_args(argv)
    seconds = args.seconds or 30.0
    if args.cloud != "now":
        asked, left = CLOUDS[args.cloud]
        seconds = args.seconds or left
        wait_for_notice(asked)
    print(f"notice: this node leaves in {seconds:g} seconds", flush=True)
    leave(seconds)
    if args.cloud == "now":
        # Whoever calls it ends the node as soon as it returns.
        wait_until_idle(seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
