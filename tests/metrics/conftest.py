"""What the tests of scores share: a clip, a worse copy of it, random weights in real layouts."""

import numpy as np
import pytest
import torch

from dreampose.metrics import backbones, pretrained


@pytest.fixture
def clips():
    """A moving square before a still background, and a noisy copy: 18 frames of 48x40."""
    random = np.random.default_rng(3)
    truth = np.full((18, 48, 40, 3), 200, np.uint8)
    for index in range(len(truth)):
        truth[index, 8:40, 2 + index : 14 + index] = (30, 90, 160)
    noise = random.integers(-20, 21, truth.shape)
    return (truth + noise).clip(0, 255).astype(np.uint8), truth


@pytest.fixture
def anything_published(monkeypatch):
    """Weights with another hash than the published ones are taken: random ones stand in."""
    monkeypatch.setattr(pretrained, "is_published", lambda backbone, found: True)


@pytest.fixture
def shallow(monkeypatch):
    """ResNets with one block a layer, which take a quarter of the time."""
    layers = tuple((width, 1, stride) for width, _, stride in backbones._RESNET50)
    monkeypatch.setattr(backbones, "_RESNET50", layers)


@pytest.fixture
def save_random():
    """Saves a network's random weights as its publisher would."""

    def save(network, path, *, prefix="", wrap=False):
        # Norms that have seen something: none is the identity, and the signal does not die away.
        for name, value in network.state_dict().items():
            if name.endswith("running_mean"):
                value.uniform_(-0.1, 0.1)
            if name.endswith("running_var"):
                value.uniform_(0.05, 0.2)
        state = {prefix + name: value for name, value in network.state_dict().items()}
        state[prefix + "fc.weight"] = torch.zeros(3, 3)  # the classifier, which no score needs
        torch.save({"state_dict": state} if wrap else state, path)
        return network.eval()

    return save
