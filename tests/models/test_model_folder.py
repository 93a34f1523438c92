"""Model folders read without torch, against loaded models."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from dreampose import checkpoints
from dreampose.errors import InputError
from dreampose.models.model_folder import MODELS, read_model_folder


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_description_equals_that_of_the_loaded_model(tiny_pipeline, tmp_path, dtype):
    checkpoints.save(tiny_pipeline, tmp_path / "model", dtype)
    pipe = checkpoints.load(tmp_path / "model")
    found = read_model_folder(tmp_path / "model")
    assert found.fingerprint() == checkpoints.fingerprint(pipe)
    assert found.recipe == pipe.recipe
    assert found.scheduler["prediction_type"] == pipe.scheduler.config["prediction_type"]
    numbers = checkpoints.num_parameters(pipe)
    assert {name: found.num_parameters(name) for name in MODELS} == numbers
    assert found.classes["unet"] == type(pipe.unet).__name__


def test_fingerprints_include_conventions(tiny_pipeline, tmp_path):
    checkpoints.save(tiny_pipeline, tmp_path / "model", torch.float16)
    before = read_model_folder(tmp_path / "model").fingerprint()
    path = tmp_path / "model" / "model_index.json"
    index = json.loads(path.read_text())
    index["recipe"]["pose_range"] = [-1.0, 1.0]
    path.write_text(json.dumps(index))
    found = read_model_folder(tmp_path / "model").fingerprint()
    assert found != before
    assert found == checkpoints.fingerprint(checkpoints.load(tmp_path / "model"))


def test_changed_weights_change_the_fingerprint(tiny_pipeline, tmp_path):
    checkpoints.save(tiny_pipeline, tmp_path / "model", torch.float16)
    before = read_model_folder(tmp_path / "model").fingerprint()
    pipe = checkpoints.load(tmp_path / "model")
    with torch.no_grad():
        pipe.unet.conv_in.weight += 0.1
    checkpoints.save(pipe, tmp_path / "model", torch.float16)
    assert read_model_folder(tmp_path / "model").fingerprint() != before


@pytest.fixture
def broken(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_a_folder_without_index_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"^model must be a folder with a model_index\.json, got"):
        read_model_folder(tmp_path)


def test_missing_and_truncated_weights_are_errors(broken):
    weights = next((broken / "unet").glob("*.safetensors"))
    whole = weights.read_bytes()
    for content in (whole[:-1], whole[:20], b"", b"\xff" * 64):
        weights.write_bytes(content)
        with pytest.raises(InputError, match="^model must be one this package wrote, got"):
            read_model_folder(broken)
    weights.unlink()
    with pytest.raises(InputError, match=r"no \.safetensors in .*unet"):
        read_model_folder(broken)


def test_an_index_without_recipe_or_component_is_an_error(broken):
    path = broken / "model_index.json"
    index = json.loads(path.read_text())
    for name in ("recipe", "unet"):
        path.write_text(json.dumps({key: index[key] for key in index if key != name}))
        with pytest.raises(InputError, match="^model must be one this package wrote, got"):
            read_model_folder(broken)


def test_info_does_not_load_torch(tiny_model):
    code = (
        "import sys\n"
        "from dreampose.__main__ import main\n"
        f"assert main(['info', {str(tiny_model)!r}]) == 0\n"
        "assert not {'torch', 'diffusers'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
