"""Weight files: location, verification, reading and their errors."""

import pytest
import torch

from dreampose.errors import InputError
from dreampose.metrics import METRICS, Networks, backbones, pretrained

PUBLISHED = [m for m in METRICS.values() if m.group == "published"]


@pytest.mark.parametrize("metric", PUBLISHED, ids=lambda metric: metric.name)
def test_errors_name_the_missing_file_and_its_place(metric, tmp_path):
    file = metric.backbones[0].file
    with pytest.raises(InputError, match=rf"^weights must name a folder .*{file}.*, got none$"):
        Networks().check([metric])
    with pytest.raises(InputError, match=rf"{file} .*, got the folder '{tmp_path}' without it$"):
        Networks(str(tmp_path)).check([metric])
    with pytest.raises(InputError, match=r"got '/nowhere', which is neither$"):
        Networks("/nowhere").check([metric])


def test_one_error_names_all_missing_files():
    with pytest.raises(InputError) as raised:
        Networks().check(PUBLISHED)
    files = {backbone.file for metric in PUBLISHED for backbone in metric.backbones}
    provided = files - {pretrained.LPIPS_HEADS.file}
    assert len(provided) > 4
    assert all(str(raised.value).count(f"with {file} ") == 1 for file in provided)


def test_an_unreachable_hub_is_an_input_error(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="got 'owner/weights', from which it cannot be downloaded"):
        Networks("owner/weights").check([METRICS["vgg"]])


def test_unpublished_weights_are_an_error(tmp_path):
    torch.save({}, tmp_path / pretrained.VGG19.file)
    with pytest.raises(InputError, match="SHA-256 that begins with dcbb9e9d, got"):
        Networks(str(tmp_path)).check([METRICS["vgg"]])


def test_the_lite_backbone_is_found_in_its_package(monkeypatch):
    found = Networks().check([METRICS["lpips-lite"], METRICS["fid-lite"]])
    assert found == {pretrained.LITE0.file: pretrained.LITE0.sha256}
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"EfficientNet-Lite0 must be installed .*\[metrics\]"):
        pretrained.locate(pretrained.LITE0, None)


def test_unreadable_checkpoints_are_input_errors(tmp_path):
    path = tmp_path / "file.pth"
    for content in (b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="weights must be a checkpoint of tensors"):
            pretrained.read_state(path)
        with pytest.raises(InputError, match="weights must be a TorchScript file"):
            pretrained.read_script(path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="weights must be a checkpoint of tensors, got other data"):
        pretrained.read_state(path)


def test_code_in_a_checkpoint_is_not_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"a": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(InputError, match="weights must be a checkpoint of tensors"):
        pretrained.read_state(tmp_path / "trap.pth")


@pytest.mark.parametrize("dimensions", [2, 3])
def test_resnet_50_has_the_published_names_and_shapes(dimensions):
    with torch.device("meta"):
        state = backbones.ResNet50(dimensions=dimensions).state_dict()
    # 53 convolutions, each with a norm that has five tensors.
    assert len(state) == 53 * 6
    grid = (1,) * dimensions
    assert state["conv1.weight"].shape == (64, 3, *(7,) * dimensions)
    assert state["layer2.0.downsample.0.weight"].shape == (512, 256, *grid)
    assert state["layer3.5.conv2.weight"].shape == (256, 256, *(3,) * dimensions)
    assert state["layer4.2.bn3.running_var"].shape == (2048,)


def test_load_ignores_additional_tensors_and_rejects_missing_ones():
    state = dict(backbones.alexnet().state_dict())
    body = backbones.alexnet()
    backbones.load(body, state | {"classifier.1.weight": torch.zeros(2)})
    assert all(torch.equal(body.state_dict()[name], value) for name, value in state.items())
    missing = {name: value for name, value in state.items() if name != "features.6.bias"}
    with pytest.raises(InputError, match=r"got none named 'features\.6\.bias'"):
        backbones.load(backbones.alexnet(), missing)
    with pytest.raises(InputError, match="weights must fit Slices"):
        backbones.load(backbones.alexnet(), state | {"features.6.bias": torch.zeros(3)})
