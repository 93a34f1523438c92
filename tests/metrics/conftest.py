"""Fixtures of the score tests: clips and random weights in published layouts."""

import numpy as np
import pytest
import torch

from dreampose.metrics import backbones, pretrained


@pytest.fixture
def clips():
    """A noisy copy of a clip, and the clip: a moving square on a static background."""
    random = np.random.default_rng(3)
    truth = np.full((18, 48, 40, 3), 200, np.uint8)
    for index in range(len(truth)):
        truth[index, 8:40, 2 + index : 14 + index] = (30, 90, 160)
    noise = random.integers(-20, 21, truth.shape)
    return (truth + noise).clip(0, 255).astype(np.uint8), truth


@pytest.fixture
def anything_published(monkeypatch):
    """Accepts weights with any hash."""
    monkeypatch.setattr(pretrained, "is_published", lambda backbone, found: True)


@pytest.fixture
def shallow(monkeypatch):
    """Reduces ResNets to one block per layer, which is four times as fast."""
    layers = tuple((width, 1, stride) for width, _, stride in backbones._RESNET50)
    monkeypatch.setattr(backbones, "_RESNET50", layers)


@pytest.fixture
def save_random():
    """Saves random weights of a network in the layout of its publisher."""

    def save(network, path, *, prefix="", wrap=False):
        # Non-trivial running statistics, so that no norm is the identity or erases the signal.
        for name, value in network.state_dict().items():
            if name.endswith("running_mean"):
                value.uniform_(-0.1, 0.1)
            if name.endswith("running_var"):
                value.uniform_(0.05, 0.2)
        state = {prefix + name: value for name, value in network.state_dict().items()}
        state[prefix + "fc.weight"] = torch.zeros(3, 3)  # the classifier, which is ignored
        torch.save({"state_dict": state} if wrap else state, path)
        return network.eval()

    return save
