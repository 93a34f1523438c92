"""LPIPS against its package, other distances against their definitions."""

import importlib
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest
import torch

from dreampose.metrics import METRICS, Networks, backbones, curve, perceptual, pretrained, registry

LPIPS = "lpips==0.1.4"


@pytest.fixture
def pairs(clips):
    pred, truth = clips
    return registry.to_tensor(pred[:3]), registry.to_tensor(truth[:3])


@pytest.fixture(scope="module")
def lpips_folder(tmp_path_factory):
    """The unpacked wheel of the package `lpips`, without its dependency torchvision."""
    folder = tmp_path_factory.mktemp("lpips")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    done = subprocess.run([*command, LPIPS], check=False, capture_output=True, timeout=900)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        pytest.skip(f"{LPIPS} cannot be downloaded")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder)
    return folder


@pytest.mark.network
def test_lpips_equals_its_package_on_the_same_random_backbone(
    lpips_folder, pairs, monkeypatch, tmp_path, save_random, anything_published
):
    body = save_random(backbones.alexnet(), tmp_path / pretrained.ALEXNET.file)
    # The package only needs a network with `features` from torchvision.
    models = types.ModuleType("torchvision.models")
    models.alexnet = lambda pretrained: types.SimpleNamespace(features=body.features)
    torchvision = types.ModuleType("torchvision")
    torchvision.models = models
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.syspath_prepend(str(lpips_folder))
    for name in [name for name in sys.modules if name.split(".")[0] == "lpips"]:
        monkeypatch.delitem(sys.modules, name)
    judge = importlib.import_module("lpips").LPIPS(net="alex", verbose=False)
    big = [torch.nn.functional.interpolate(x, scale_factor=2) for x in pairs]
    with torch.no_grad():
        wanted = judge(*(x * 2 - 1 for x in big)).flatten().numpy()
    frames = [(x.permute(0, 2, 3, 1) * 255).round().byte().numpy() for x in big]
    found = curve(METRICS["lpips"], *frames, Networks(str(tmp_path)))
    assert (wanted > 1e-4).all()
    assert found == pytest.approx(wanted, rel=1e-4)


def test_vgg_distance_is_the_mean_difference_at_five_layers(pairs):
    network = backbones.vgg19().eval()
    pred, truth = pairs
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    a, b, wanted = (pred - mean) / deviation, (truth - mean) / deviation, torch.zeros(3)
    with torch.no_grad():
        for index, layer in enumerate(network.features):
            a, b = layer(a), layer(b)
            # torchvision's indices of relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1
            if index in (1, 6, 11, 20, 29):
                wanted += (a - b).abs().flatten(1).mean(dim=1) / 5
        found = perceptual.vgg_distance(network, pred, truth)
    assert torch.allclose(found, wanted, rtol=1e-5)
    assert wanted.min() > 0


def test_lpips_lite_is_the_distance_of_unit_features_at_five_strides(clips):
    pred, truth = clips[0][:2], clips[1][:2]
    found = Networks()
    metric = METRICS["lpips-lite"]
    network = found.get(metric)
    wanted = np.zeros(2)
    with torch.no_grad():
        stages = zip(
            network.stages(registry.to_tensor(pred)),
            network.stages(registry.to_tensor(truth)),
            strict=True,
        )
        for a, b in stages:
            a, b = a.double().numpy(), b.double().numpy()
            a /= np.linalg.norm(a, axis=1, keepdims=True)
            b /= np.linalg.norm(b, axis=1, keepdims=True)
            # |a - b|² = 2 - 2 cos, averaged over the cells
            wanted += (2 - 2 * (a * b).sum(axis=1)).mean(axis=(1, 2)) / 5
    assert curve(metric, pred, truth, found) == pytest.approx(wanted, rel=1e-3)
    assert curve(metric, truth, truth, found) == pytest.approx([0, 0], abs=1e-9)


def test_lpips_lite_grows_with_the_error_and_is_differentiable(clips):
    _, truth = clips
    random = np.random.default_rng(0)
    found = Networks()

    def score(strength):
        noise = random.normal(0, strength, truth[:1].shape)
        pred = (truth[:1] + noise).clip(0, 255).astype(np.uint8)
        return float(curve(METRICS["lpips-lite"], pred, truth[:1], found)[0])

    assert 0 < score(5) < score(20) < score(80) < 4
    image = registry.to_tensor(truth[:1]).requires_grad_()
    network = found.get(METRICS["lpips-lite"])
    perceptual.lpips_lite(network, image, registry.to_tensor(truth[1:2])).sum().backward()
    assert image.grad.abs().sum() > 0
    assert torch.isfinite(image.grad).all()


def test_aed_is_the_mean_difference_of_the_embeddings(
    clips, tmp_path, save_random, shallow, anything_published
):
    pred, truth = clips[0][:1], clips[1][:1]
    network = save_random(
        backbones.ResNet50(dimensions=2), tmp_path / pretrained.REID.file, prefix="model."
    )

    def embedding(frames):
        x = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
        x = torch.nn.functional.interpolate(x, size=(288, 144), mode="bicubic", antialias=True)
        x = x.clamp(0, 1)
        for channel, (mean, deviation) in enumerate(
            [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]
        ):
            x[:, channel] = (x[:, channel] - mean) / deviation
        with torch.no_grad():
            return network(x).numpy()

    wanted = np.mean(np.abs(embedding(pred) - embedding(truth)), axis=1)
    found = curve(METRICS["aed"], pred, truth, Networks(str(tmp_path)))
    assert found == pytest.approx(wanted, rel=1e-4)
    assert (wanted > 0).all()


def test_pairwise_distances_equal_single_distances():
    network = Networks().get(METRICS["lpips-lite"])
    preds, truths = torch.rand(2, 3, 40, 32), torch.rand(3, 3, 40, 32)
    truths[1] = preds[0]
    matrix = perceptual.pairwise_lpips_lite(network, preds, truths)
    wanted = [
        [perceptual.lpips_lite(network, pred[None], truth[None]).item() for truth in truths]
        for pred in preds
    ]
    assert torch.allclose(matrix, torch.tensor(wanted), rtol=1e-3, atol=1e-6)
    assert matrix[0].argmin() == 1
    assert matrix[0, 1] < 1e-8


def test_identity_is_kept_if_the_own_truth_is_nearest():
    matrix = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, 0.4], [0.3, 0.5, 0.3]])
    assert perceptual.identity_kept(matrix).tolist() == [True, False, False]
