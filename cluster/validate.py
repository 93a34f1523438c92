"""Checks of cluster files without a cloud at hand. Knows nothing of what the clusters are for.

python -m cluster.validate cluster/aws.yaml
python -m cluster.validate cluster/kuberay.yaml ray.io_rayclusters.yaml
"""

import copy
import sys
from pathlib import Path
from typing import Any

import jsonschema
import yaml


def check_autoscaler(path: str | Path) -> dict[str, Any]:
    """Checks a file for `ray up` as Ray itself does; gives it with Ray's defaults filled in.

    The one place that touches Ray's private functions, which may move with any version.

    Raises:
        jsonschema.ValidationError: a key is unknown or has the wrong type.
        ValueError: node types and limits do not belong together.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(_read(path))
    validate_config(config)
    return config


def check_kuberay(path: str | Path, definition: str | Path) -> dict[str, Any]:
    """Checks a KubeRay manifest against a custom resource definition of the operator; gives it.

    Unlike Kubernetes' own check, an unknown key is an error: it is nearly always a misspelt one.

    Raises:
        jsonschema.ValidationError: a key is unknown or has the wrong type.
    """
    manifest, crd = _read(path), _read(definition)
    (version,) = (item for item in crd["spec"]["versions"] if item["name"] == "v1")
    schema = _strict(copy.deepcopy(version["schema"]["openAPIV3Schema"]))
    # Kubernetes checks metadata itself; the definition only says that it is an object.
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(manifest, schema, cls=jsonschema.Draft7Validator)
    return manifest


def _read(path: str | Path) -> Any:
    # The parser in C, where PyYAML was built with it: a definition is 18,000 lines.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(Path(path).read_text("utf-8"), Loader=loader)


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    node = {key: _strict(value) for key, value in node.items()}
    is_schema = isinstance(node.get("properties"), dict) and node.get("type", "object") == "object"
    if is_schema and not node.get("x-kubernetes-preserve-unknown-fields"):
        node.setdefault("additionalProperties", False)
    return node


if __name__ == "__main__":
    check_autoscaler(sys.argv[1]) if len(sys.argv) == 2 else check_kuberay(*sys.argv[1:])
