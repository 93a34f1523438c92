"""Schemas of KubeRay's manifests, made from the operator's custom resource definitions.

    python -m cluster.kuberay_schemas CRD.yaml... > cluster/kuberay/schemas.json

Unlike Kubernetes' own check, an unknown key is an error: it is nearly always a misspelt one. Parts
that occur several times, above all the pod template, are written once.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

MIN_CHARACTERS = 300
"""A part shorter than this is not shared."""


def convert(paths: Sequence[str | Path]) -> dict[str, Any]:
    """JSON schemas (draft 7) by kind, with what they share under `definitions`.

    Args:
        paths: custom resource definitions, YAML; their version v1 is taken.
    """
    # The parser in C, where PyYAML was built with it: a definition is 18,000 lines.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    kinds: dict[str, Any] = {}
    for path in paths:
        crd = yaml.load(Path(path).read_text("utf-8"), Loader=loader)
        (version,) = (item for item in crd["spec"]["versions"] if item["name"] == "v1")
        schema = _strict(version["schema"]["openAPIV3Schema"])
        # Kubernetes checks metadata itself; the definition only says that it is an object.
        schema["properties"]["metadata"] = {"type": "object"}
        kinds[crd["spec"]["names"]["kind"]] = schema
    counts: Counter[str] = Counter()
    _count(kinds, counts)
    shared: dict[str, str] = {}
    definitions: dict[str, Any] = {}
    kinds = {kind: _share(schema, counts, shared, definitions) for kind, schema in kinds.items()}
    return {"kinds": kinds, "definitions": definitions}


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    loose = node.get("x-kubernetes-preserve-unknown-fields")
    properties = node.get("properties")
    if isinstance(properties, dict) and node.get("type", "object") == "object":
        # Names of properties are data here, also where one is called description or format.
        node = {**node, "properties": {key: _strict(value) for key, value in properties.items()}}
        if not loose:
            node.setdefault("additionalProperties", False)
    return {
        key: value if key == "properties" else _strict(value)
        for key, value in node.items()
        if key not in ("description", "format", "default") and not key.startswith("x-kubernetes")
    }


def _key(node: Any) -> str:
    return json.dumps(node, sort_keys=True, separators=(",", ":"))


def _count(node: Any, counts: Counter[str]) -> None:
    if isinstance(node, dict):
        if "type" in node:
            key = _key(node)
            if len(key) >= MIN_CHARACTERS:
                counts[key] += 1
                if counts[key] > 1:
                    return
        for value in node.values():
            _count(value, counts)
    elif isinstance(node, list):
        for value in node:
            _count(value, counts)


def _share(
    node: Any, counts: Counter[str], shared: dict[str, str], definitions: dict[str, Any]
) -> Any:
    if isinstance(node, list):
        return [_share(item, counts, shared, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    key = _key(node)
    if counts[key] > 1 and key in shared:
        return {"$ref": f"#/definitions/{shared[key]}"}
    result = {name: _share(value, counts, shared, definitions) for name, value in node.items()}
    if counts[key] > 1:
        shared[key] = f"d{len(shared)}"
        definitions[shared[key]] = result
        return {"$ref": f"#/definitions/{shared[key]}"}
    return result


if __name__ == "__main__":
    print(json.dumps(convert(sys.argv[1:]), separators=(",", ":"), sort_keys=True))
