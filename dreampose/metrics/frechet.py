"""Fréchet distances between sets of clips, and their features.

Features are rows, one per frame or per 16-frame window, so they can be computed clip by clip and
concatenated later. Images are RGB in [0, 1] of shape (t, 3, H, W).
"""

from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from dreampose.metrics.backbones import EfficientNetLite0, ResNet50, resize_to_lite0

WINDOW = 16
"""Frames per window, as in FVD-16f and in the training of the Kinetics networks."""
_HEAD = 1280
"""Number of columns of `lite_features` that come from the head."""
_KINETICS_MEAN = (114.7748, 107.7354, 99.4750)


def frechet_distance(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]) -> float:
    """Fréchet distance of two Gaussians fitted to rows of features (Dowson and Landau 1982).

    d² = |μ1 - μ2|² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½) with unbiased covariances, known as FID and FVD. It
    depends on the number of rows: compare only values of equal numbers.

    torchmetrics' FrechetInceptionDistance is not used. It takes the eigenvalues of the d x d matrix
    Σ1 Σ2: with 48 rows of 1280 features that gives -4e-4 instead of 0 for equal sets and takes
    1000 times as long, and intervals need one distance per resample.
    """
    assert min(len(first), len(second)) >= 2, "a covariance needs two rows"
    a, b = first.astype(np.float64), second.astype(np.float64)
    difference: Float[np.ndarray, " d"] = a.mean(axis=0) - b.mean(axis=0)
    # Scale such that aᵀa and bᵀb are the covariances.
    a = (a - a.mean(axis=0)) / np.sqrt(len(a) - 1)
    b = (b - b.mean(axis=0)) / np.sqrt(len(b) - 1)
    traces = np.sum(a * a) + np.sum(b * b)
    return float(difference @ difference + traces - 2 * _trace_of_root(a, b))


def _trace_of_root(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Trace of (aᵀa bᵀb)^½: the sum of the singular values of a bᵀ."""
    if min(len(a), len(b)) <= a.shape[1]:
        return float(np.linalg.svd(a @ b.T, compute_uv=False).sum())
    # More rows than columns: use d x d matrices. With aᵀa = l lᵀ, the eigenvalues of aᵀa bᵀb are
    # those of the symmetric matrix lᵀ bᵀb l.
    covariance = a.T @ a
    try:
        root = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:  # a constant feature
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(values.clip(min=0))
    half = b @ root
    values = torch.linalg.eigvalsh(torch.from_numpy(half.T @ half))
    return float(values.clamp(min=0).sqrt().sum())


def windows(images: Float[Tensor, "t 3 H W"]) -> Float[Tensor, "n 16 3 H W"]:
    """Consecutive windows of 16 frames; the remainder at the end is dropped."""
    count = len(images) // WINDOW
    assert count >= 1, "a clip must have 16 frames for a window"
    return rearrange(images[: count * WINDOW], "(n s) c h w -> n s c h w", s=WINDOW)


def fid_features(network: Any, images: Float[Tensor, "t 3 H W"]) -> Float[Tensor, "t d"]:
    """FID: pooled features of Inception-v3 of every frame.

    Range of the distance: 0 to infinity. Resolution: 299x299, resized by the network as TensorFlow
    1 did. Colours: RGB levels 0 to 255. Backbone: inception-2015-12-05.pt, 2048 features (no
    published hash; the report prints that of the file). Source: Heusel et al. 2017 (arXiv
    1706.08500); the file is NVIDIA's conversion of their network.
    """
    return network((images * 255).round(), return_features=True)


def fid_video_features(
    network: ResNet50, images: Float[Tensor, "t 3 H W"]
) -> Float[Tensor, "n 2048"]:
    """FID-VID: pooled features of a 3D ResNet-50 of every 16-frame window.

    The last window of a clip is padded with its last frame. Range of the distance: 0 to infinity.
    Resolution: 112x112, bicubic, aspect ratio not kept. Colours: RGB levels 0 to 255 minus the mean
    of Kinetics. Backbone: resnet-50-kinetics.pth (no published hash; the report prints that of the
    file). Source: Balaji et al. 2019 (TFGAN) as computed by DisCo (arXiv 2307.00040).
    """
    missing = -len(images) % WINDOW
    filled = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
    fitted = functional.interpolate(
        filled, size=(112, 112), mode="bicubic", antialias=True, align_corners=False
    )
    mean = torch.tensor(_KINETICS_MEAN).to(images)[:, None, None]
    levels = fitted.clamp(0, 1) * 255 - mean
    return network(rearrange(levels, "(n s) c h w -> n c s h w", s=WINDOW))


def fvd_features(network: Any, images: Float[Tensor, "t 3 H W"]) -> Float[Tensor, "n d"]:
    """FVD-16f: features of I3D of every 16-frame window.

    Range of the distance: 0 to infinity. Resolution: 224x224, resized by the network. Colours: RGB
    levels 0 to 255, normalised by the network. Backbone: i3d_torchscript.pt, 400 features (no
    published hash; the report prints that of the file). Source: Unterthiner et al. 2018 (arXiv
    1812.01717); the file is StyleGAN-V's conversion of their network. Windows do not overlap; the
    remainder at the end of a clip is dropped.
    """
    levels = (rearrange(windows(images), "n s c h w -> n c s h w") * 255).round()
    return network(levels, rescale=True, resize=True, return_features=True)


def lite_features(
    network: EfficientNetLite0, images: Float[Tensor, "t 3 H W"]
) -> Float[Tensor, "t 1600"]:
    """Features of fid-lite and fvd-lite: 1280 of the head, then 320 of the last stage, pooled.

    Frames are resized to 224x224, bilinear with antialiasing, aspect ratio not kept.
    """
    last = network.stages(resize_to_lite0(images))[-1]
    return torch.cat([network.head(last), last.mean(dim=(2, 3))], dim=1)


def fid_lite_rows(features: Float[np.ndarray, "t 1600"]) -> Float[np.ndarray, "t 1280"]:
    """fid-lite: pooled features of EfficientNet-Lite0 of every frame.

    Range of the distance: 0 to infinity. Resolution: 224x224, bilinear with antialiasing, aspect
    ratio not kept. Colours: RGB in [0, 1], (level - 127) / 128. Backbone:
    efficientnet-lite0-57934424.pth (SHA-256 begins with 57934424). Source: this project, after FID;
    values are not comparable with FID.
    """
    return features[:, :_HEAD]


def fvd_lite_rows(features: Float[np.ndarray, "t 1600"]) -> Float[np.ndarray, "n 640"]:
    """fvd-lite: appearance and change of every 16-frame window, by EfficientNet-Lite0.

    The 320 features of a frame are those of the last stage, averaged over space. The features of a
    window are their mean over frames and the mean absolute difference between consecutive frames,
    which depends on the order of frames and on flicker.

    Range of the distance: 0 to infinity. Resolution: 224x224, bilinear with antialiasing, aspect
    ratio not kept. Colours: RGB in [0, 1], (level - 127) / 128. Backbone:
    efficientnet-lite0-57934424.pth (SHA-256 begins with 57934424). Source: this project, after FVD;
    values are not comparable with FVD. Windows do not overlap; the remainder at the end of a clip
    is dropped.
    """
    kept = features[: len(features) // WINDOW * WINDOW, _HEAD:]
    frames = rearrange(kept, "(n s) d -> n s d", s=WINDOW)
    changes = np.abs(np.diff(frames, axis=1)).mean(axis=1)
    return np.concatenate([frames.mean(axis=1), changes], axis=1)
