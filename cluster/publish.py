"""Publication of a cluster's node types for the jobs that run on it.

Ray's autoscaler keeps its node types to itself. The head's start commands call, after `ray start`:

    python -m cluster.publish ~/ray_bootstrap_config.yaml

with an autoscaler's configuration or a RayCluster; jobs then know what the cluster can grow to.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from cluster import node_types
from cluster.node_types import NodeType
from dreampose.errors import InputError

KEY = b"dreampose:node_types"
"""Key in the internal store of Ray's head."""
VARIABLE = "DREAMPOSE_NODE_TYPES"
"""Environment variable of the head with the same as JSON, where no command can run after start."""


def read(path: str | Path) -> list[NodeType]:
    """Node types of a file for `ray up`, or of a RayCluster, RayJob or RayService of KubeRay.

    Raises:
        InputError: the file is neither, or says no sizes.
    """
    try:
        documents = list(yaml.safe_load_all(Path(path).read_text("utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cluster file: cannot read {str(path)!r} ({error})") from None
    for document in documents:
        if not isinstance(document, dict):
            continue
        if "available_node_types" in document:
            return node_types.from_autoscaler(document)
        spec = raycluster_spec(document)
        if spec is not None:
            return node_types.from_raycluster(spec)
    raise InputError(f"cluster file: {str(path)!r} describes no cluster of Ray")


def raycluster_spec(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """The cluster's part of a manifest of KubeRay; None if it has none."""
    spec = manifest.get("spec") or {}
    spec = spec.get("jobTemplate", spec)
    for part in ("rayClusterSpec", "rayClusterConfig"):
        spec = spec.get(part, spec)
    return spec if "headGroupSpec" in spec else None


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(prog="cluster.publish", description=__doc__)
    parser.add_argument("config", help="autoscaler's configuration or RayCluster, YAML")
    parser.add_argument("--address", help="of the head; by default the cluster that runs here")
    args = parser.parse_args(argv)
    try:
        found = read(args.config)
    except InputError as error:
        print(f"cluster.publish: error: {error}", file=sys.stderr)
        return 2
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]

    client = GcsClient(address=canonicalize_bootstrap_address_or_die(args.address))
    client.internal_kv_put(KEY, node_types.to_json(found).encode(), True, None)
    print("node types: " + "; ".join(map(str, found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
