"""The files that describe clusters are ones that Ray and KubeRay accept."""

from pathlib import Path

import jsonschema
import pytest
import yaml

from cluster import validate

ROOT = Path(__file__).parents[2]
DEFINITION = ROOT.parent / "shared" / "kuberay-crds" / "ray.io_rayclusters.yaml"


def copy_with(path: Path, tmp_path: Path, old: str, new: str) -> Path:
    text = path.read_text("utf-8")
    assert old in text
    copy = tmp_path / path.name
    copy.write_text(text.replace(old, new, 1), "utf-8")
    return copy


def test_ray_accepts_the_aws_file():
    pytest.importorskip("ray")
    config = validate.check_autoscaler(ROOT / "cluster" / "aws.yaml")
    types = config["available_node_types"]
    # Work goes to nodes that come when it is there: the head runs none of it.
    assert types["head"]["resources"]["CPU"] == 0
    assert types["gpu"]["resources"]["GPU"] == 1
    assert types["gpu"]["min_workers"] == types["cpu"]["min_workers"] == 0


def test_a_misspelt_aws_key_is_refused(tmp_path):
    pytest.importorskip("ray")
    broken = copy_with(
        ROOT / "cluster" / "aws.yaml", tmp_path, "idle_timeout_minutes", "idle_timeout_minute"
    )
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        validate.check_autoscaler(broken)


@pytest.mark.skipif(not DEFINITION.is_file(), reason=f"needs KubeRay's definition, {DEFINITION}")
class TestKubeRay:
    def test_the_manifest_is_accepted(self):
        manifest = validate.check_kuberay(ROOT / "cluster" / "kuberay.yaml", DEFINITION)
        assert manifest["spec"]["authOptions"]["mode"] == "token"

    @pytest.mark.parametrize(
        ("old", "new"),
        [("minReplicas", "minReplica"), ("rayVersion: 2.60.0", "rayVersion: 2.6"),
         ("idleTimeoutSeconds: 600", "idleTimeoutSeconds: soon")],
    )  # fmt: skip
    def test_a_mistake_in_it_is_refused(self, tmp_path, old, new):
        broken = copy_with(ROOT / "cluster" / "kuberay.yaml", tmp_path, old, new)
        with pytest.raises(jsonschema.ValidationError):
            validate.check_kuberay(broken, DEFINITION)


def test_both_files_run_the_version_of_ray_that_the_project_pins():
    pins = (ROOT / "constraints.txt").read_text("utf-8")
    (version,) = (line.split("==")[1].split(";")[0].strip() for line in pins.splitlines()
                  if line.startswith("ray=="))  # fmt: skip
    aws = yaml.safe_load((ROOT / "cluster" / "aws.yaml").read_text("utf-8"))
    kuberay = yaml.safe_load((ROOT / "cluster" / "kuberay.yaml").read_text("utf-8"))
    assert f":{version}-" in aws["docker"]["image"]
    assert str(kuberay["spec"]["rayVersion"]) == version
