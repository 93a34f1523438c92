"""EfficientNet-Lite0 and its published weights."""

import cv2
import pytest
import torch
from skimage import data

from dreampose.errors import InputError
from dreampose.metrics import backbones, pretrained, registry


@pytest.fixture(scope="module")
def state():
    return pretrained.read_state(pretrained.locate(pretrained.LITE0, None))


def test_all_weights_are_loaded(state):
    network = backbones.build_lite0(state)
    assert network.state_dict().keys() == state.keys()
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_missing_and_unexpected_weights_are_errors(state):
    with pytest.raises(InputError, match=r"_fc\.bias"):
        backbones.build_lite0({name: value for name, value in state.items() if name != "_fc.bias"})
    with pytest.raises(InputError, match="extra"):
        backbones.build_lite0(state | {"extra": torch.zeros(1)})


def test_a_photo_of_a_cat_is_classified_as_a_cat(state):
    """Depends on weights, padding and normalisation: classes tabby, tiger and Egyptian cat."""
    picture = cv2.resize(data.chelsea()[:, 60:360], (224, 224), interpolation=cv2.INTER_AREA)
    chances = backbones.build_lite0(state)(registry.to_tensor(picture[None])).softmax(dim=1)[0]
    assert chances[[281, 282, 285]].sum() > 0.8


def test_features_equal_those_of_the_original_package(state):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    other = package.EfficientNet.from_name("efficientnet-lite0").eval()
    other.load_state_dict(state)
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        wanted = other.extract_features((images * 255 - 127) / 128).mean(dim=(2, 3))
    network = backbones.build_lite0(state)
    assert torch.allclose(network.embed(images), wanted, atol=1e-4)
    last = network.stages(images)[-1]
    assert torch.equal(network.head(last), network.embed(images))
    assert [tuple(x.shape[1:]) for x in network.stages(images)] == [
        (c, 112 >> i, 112 >> i) for i, c in enumerate(backbones.LITE0_CHANNELS)
    ]
