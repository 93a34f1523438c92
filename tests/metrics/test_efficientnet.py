"""EfficientNet-Lite0: every weight is used, and the network is the one they were trained for."""

import cv2
import pytest
import torch
from skimage import data

from dreampose.errors import InputError
from dreampose.metrics import clip_scores, efficientnet, pretrained


@pytest.fixture(scope="module")
def state():
    return pretrained.read_state(pretrained.locate(pretrained.LITE0, None))


def test_all_weights_are_used_and_none_is_made_up(state):
    network = efficientnet.build(state)
    assert network.state_dict().keys() == state.keys()
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_weight_too_many_or_too_few_is_refused(state):
    with pytest.raises(InputError, match=r"_fc\.bias"):
        efficientnet.build({name: value for name, value in state.items() if name != "_fc.bias"})
    with pytest.raises(InputError, match="extra"):
        efficientnet.build(state | {"extra": torch.zeros(1)})


def test_a_cat_is_a_cat(state):
    """Weights, padding and the scale of colours together: ImageNet's tabby, tiger, Egyptian cat."""
    picture = cv2.resize(data.chelsea()[:, 60:360], (224, 224), interpolation=cv2.INTER_AREA)
    chances = efficientnet.build(state)(clip_scores.images(picture[None])).softmax(dim=1)[0]
    assert chances[[281, 282, 285]].sum() > 0.8


def test_features_equal_those_of_the_package_s_own_network(state):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    other = package.EfficientNet.from_name("efficientnet-lite0").eval()
    other.load_state_dict(state)
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        wanted = other.extract_features((images * 255 - 127) / 128).mean(dim=(2, 3))
    network = efficientnet.build(state)
    assert torch.allclose(network.embed(images), wanted, atol=1e-4)
    last = network.stages(images)[-1]
    assert torch.equal(network.head(last), network.embed(images))
    assert [tuple(x.shape[1:]) for x in network.stages(images)] == [
        (c, 112 >> i, 112 >> i) for i, c in enumerate(efficientnet.CHANNELS)
    ]
