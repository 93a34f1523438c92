"""Fréchet distances against torchmetrics and their definition."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from dreampose.metrics import (
    METRICS,
    Networks,
    backbones,
    distance,
    features,
    frechet,
    pretrained,
    registry,
)


def by_definition(first, second):
    """|μ1 - μ2|² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½) with a general matrix root."""
    means = first.mean(axis=0) - second.mean(axis=0)
    a, b = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    return means @ means + np.trace(a) + np.trace(b) - 2 * np.trace(root.real)


@pytest.mark.parametrize(("num_rows", "width"), [(60, 7), (40, 40), (9, 30)])
def test_distance_equals_its_definition(num_rows, width):
    random = np.random.default_rng(1)
    mixing = random.normal(size=(width, width))
    first = random.normal(size=(num_rows, width))
    second = random.normal(size=(num_rows + 3, width)) @ mixing + 0.3
    assert frechet.frechet_distance(first, second) == pytest.approx(
        by_definition(first, second), rel=1e-5
    )
    assert frechet.frechet_distance(first, first) == pytest.approx(0, abs=1e-7)


def test_constant_features_do_not_change_the_distance():
    random = np.random.default_rng(2)
    first, second = random.normal(size=(50, 6)), random.normal(size=(50, 6)) * 2
    plain = frechet.frechet_distance(first, second)
    with_constants = [np.concatenate([x, np.zeros((50, 2))], axis=1) for x in (first, second)]
    assert frechet.frechet_distance(*with_constants) == pytest.approx(plain)


class RandomInception(nn.Module):
    """Replacement of the TorchScript Inception: maps levels 0 to 255 to features."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 24, 5, stride=4)

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert return_features
        return torch.relu(self.layer(x / 16)).mean(dim=[2, 3])


def save_script(module, path):
    torch.jit.script(module).save(str(path))
    return module


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_fid_equals_torchmetrics_on_the_same_random_backbone(clips, tmp_path, anything_published):
    from torchmetrics.image.fid import FrechetInceptionDistance

    network = save_script(RandomInception(), tmp_path / pretrained.INCEPTION.file)
    pred, truth = clips
    found = Networks(str(tmp_path))
    metric = METRICS["fid"]
    rows = [[features(metric, clip[part], found) for part in (slice(9), slice(9, 18))]
            for clip in (pred, truth)]  # fmt: skip

    class Levels(nn.Module):
        num_features = 24

        def forward(self, x):
            return network(x.float(), return_features=True).detach()

    judge = FrechetInceptionDistance(feature=Levels(), normalize=False)
    judge.set_dtype(torch.float64)
    for clip, real in ((pred, False), (truth, True)):
        judge.update(torch.from_numpy(clip).permute(0, 3, 1, 2), real=real)
    wanted = float(judge.compute())
    assert wanted > 1e-3
    assert distance(metric, *rows) == pytest.approx(wanted, rel=1e-4)


class RandomI3D(nn.Module):
    """Replacement of the TorchScript I3D: maps (b, 3, t, H, W) levels to features."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(3, 6, 3, stride=2)

    def forward(
        self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool
    ) -> torch.Tensor:
        assert rescale and resize and return_features
        return torch.relu(self.layer(x / 255)).mean(dim=[2, 3, 4])


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_fvd_uses_windows_of_sixteen_frames(tmp_path, anything_published):
    network = save_script(RandomI3D(), tmp_path / pretrained.I3D.file)
    random = np.random.default_rng(5)
    preds, truths = (
        [random.integers(0, high, (n, 16, 16, 3), dtype=np.uint8) for n in (50, 33, 16)]
        for high in (200, 256)
    )

    def plain(clips):
        rows = []
        for clip in clips:
            for start in range(0, len(clip) - 15, 16):
                window = clip[start : start + 16].astype(np.float32)
                x = torch.from_numpy(window.transpose(3, 0, 1, 2)[None])
                rows.append(network(x, True, True, True)[0].detach().numpy())
        return np.array(rows)

    assert len(plain(preds)) == 3 + 2 + 1
    found, metric = Networks(str(tmp_path)), METRICS["fvd-16f"]
    rows = [[features(metric, clip, found) for clip in clips] for clips in (preds, truths)]
    assert distance(metric, *rows) == pytest.approx(
        by_definition(plain(preds), plain(truths)), rel=1e-4
    )


def test_fid_vid_pads_the_last_window_with_the_last_frame(
    clips, tmp_path, save_random, shallow, anything_published
):
    file = tmp_path / pretrained.RESNET3D.file
    network = save_random(backbones.ResNet50(dimensions=3), file, prefix="module.", wrap=True)
    frames = clips[0][:3]
    found = features(METRICS["fid-vid"], frames, Networks(str(tmp_path)))
    filled = np.concatenate([frames, *[frames[-1:]] * 13])
    x = torch.from_numpy(filled).permute(0, 3, 1, 2).float() / 255
    x = torch.nn.functional.interpolate(x, size=(112, 112), mode="bicubic", antialias=True)
    x = x.clamp(0, 1) * 255 - torch.tensor([114.7748, 107.7354, 99.4750]).view(3, 1, 1)
    with torch.no_grad():
        wanted = network(x.permute(1, 0, 2, 3)[None])[0].numpy()
    assert wanted.std() > 1e-3
    assert found.shape == (1, 2048)
    assert found[0] == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_fid_lite_and_fvd_lite_share_their_features(clips):
    found, frames = Networks(), clips[0][:2]
    network = found.get(METRICS["fid-lite"])
    rows = features(METRICS["fid-lite"], frames, found)
    images = torch.nn.functional.interpolate(
        registry.to_tensor(frames), size=(224, 224), mode="bilinear", antialias=True
    )
    with torch.no_grad():
        head = network.embed(images).numpy()
        pooled = network.stages(images)[-1].mean(dim=(2, 3)).numpy()
    assert frechet.fid_lite_rows(rows) == pytest.approx(head, abs=1e-3)
    assert rows[:, 1280:] == pytest.approx(pooled, abs=1e-3)
    assert METRICS["fid-lite"].features is METRICS["fvd-lite"].features


def test_fvd_lite_depends_on_the_order_of_frames_and_fid_lite_does_not():
    rows = np.random.default_rng(6).normal(size=(40, 1600)).cumsum(axis=0).astype(np.float32)
    windows = frechet.fvd_lite_rows(rows)
    assert windows.shape == (2, 640)
    changes = sum(np.abs(rows[i + 1, 1280:] - rows[i, 1280:]) for i in range(16, 31)) / 15
    assert windows[1, :320] == pytest.approx(rows[16:32, 1280:].mean(axis=0), rel=1e-4, abs=1e-4)
    assert windows[1, 320:] == pytest.approx(changes, rel=1e-4)
    shuffled = np.concatenate([rows[:16:2], rows[1:16:2], rows[16:]])
    assert distance(METRICS["fid-lite"], [shuffled], [rows]) == pytest.approx(0, abs=1e-2)
    assert distance(METRICS["fvd-lite"], [shuffled], [rows]) > 10


def test_distance_of_one_row_is_nan():
    assert np.isnan(distance(METRICS["fid"], [np.ones((1, 4))], [np.ones((5, 4))]))
