"""Distances between sets of clips: the Fréchet distance and what it is taken of. Knows no files.

Features are rows, one per frame or per 16-frame window, so that they can be computed clip by clip
anywhere and put together later. Images are RGB floats in [0, 1], `(t, 3, H, W)`.
"""

from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from dreampose.metrics.backbones import ResNet50
from dreampose.metrics.efficientnet import EfficientNetLite0, fit_to_training_size

WINDOW = 16
"""Frames of a window: FVD-16f, and what the Kinetics networks were trained on."""
_HEAD = 1280
"""Columns of `lite_features` that are the head's."""
_KINETICS_MEAN = (114.7748, 107.7354, 99.4750)


def frechet_distance(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]) -> float:
    """Fréchet distance of two Gaussians fitted to rows of features (Dowson and Landau 1982).

    d² = |μ1 - μ2|² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½), the covariances unbiased; what is called FID and
    FVD. It depends on how many rows there are: compare only equal numbers of them.
    """
    assert min(len(first), len(second)) >= 2, "a covariance needs two rows"
    a, b = first.astype(np.float64), second.astype(np.float64)
    difference: Float[np.ndarray, " d"] = a.mean(axis=0) - b.mean(axis=0)
    # Scaled so that aᵀa and bᵀb are the covariances.
    a = (a - a.mean(axis=0)) / np.sqrt(len(a) - 1)
    b = (b - b.mean(axis=0)) / np.sqrt(len(b) - 1)
    traces = np.sum(a * a) + np.sum(b * b)
    return float(difference @ difference + traces - 2 * _trace_of_root(a, b))


def _trace_of_root(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Trace of (aᵀa bᵀb)^½: the sum of the singular values of a bᵀ."""
    if min(len(a), len(b)) <= a.shape[1]:
        return float(np.linalg.svd(a @ b.T, compute_uv=False).sum())
    # More rows than columns: the same from d x d matrices. With aᵀa = l lᵀ the eigenvalues of
    # aᵀa bᵀb are those of the symmetric lᵀ bᵀb l.
    covariance = a.T @ a
    try:
        root = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:  # a feature that never varies
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(values.clip(min=0))
    half = b @ root
    values = torch.linalg.eigvalsh(torch.from_numpy(half.T @ half))
    return float(values.clamp(min=0).sqrt().sum())


def windows(images: Float[Tensor, "t 3 H W"]) -> Float[Tensor, "n 16 3 H W"]:
    """Consecutive windows of 16 frames from the first on; what is left at the end is dropped."""
    count = len(images) // WINDOW
    assert count >= 1, "a clip must have 16 frames for a window"
    return rearrange(images[: count * WINDOW], "(n s) c h w -> n s c h w", s=WINDOW)


def fid_features(network: Any, images: Float[Tensor, "t 3 H W"]) -> Float[Tensor, "t d"]:
    """FID: Inception-v3's pooled features of every frame.

    Range of the distance: 0 upwards. Resolution: 299x299, scaled by the network itself as
    TensorFlow 1 did. Colours: RGB levels 0 to 255. Backbone: inception-2015-12-05.pt, 2048 features
    (no hash is published; the report prints the file's). Source: Heusel et al. 2017 (arXiv
    1706.08500); the file is NVIDIA's translation of their network.
    """
    return network((images * 255).round(), return_features=True)


def fid_video_features(
    network: ResNet50, images: Float[Tensor, "t 3 H W"]
) -> Float[Tensor, "n 2048"]:
    """FID-VID: a 3D ResNet-50's pooled features of every 16-frame window.

    A clip's last window is filled up with its last frame. Range of the distance: 0 upwards.
    Resolution: 112x112, bicubic, sides scaled apart. Colours: RGB levels 0 to 255 less Kinetics'
    mean. Backbone: resnet-50-kinetics.pth (no hash is published; the report prints the file's).
    Source: Balaji et al. 2019 (TFGAN) as DisCo computes it (arXiv 2307.00040).
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
    """FVD-16f: I3D's features of every 16-frame window.

    Range of the distance: 0 upwards. Resolution: 224x224, scaled by the network itself. Colours:
    RGB levels 0 to 255, scaled by the network itself. Backbone: i3d_torchscript.pt, 400 features
    (no hash is published; the report prints the file's). Source: Unterthiner et al. 2018 (arXiv
    1812.01717); the file is StyleGAN-V's translation of their network. Windows do not overlap; what
    is left at a clip's end is dropped.
    """
    levels = (rearrange(windows(images), "n s c h w -> n c s h w") * 255).round()
    return network(levels, rescale=True, resize=True, return_features=True)


def lite_features(
    network: EfficientNetLite0, images: Float[Tensor, "t 3 H W"]
) -> Float[Tensor, "t 1600"]:
    """What fid-lite and fvd-lite share: the head's 1280 and the last stage's 320 pooled features.

    Frames are seen at 224x224, bilinear with antialias, sides scaled apart.
    """
    last = network.stages(fit_to_training_size(images))[-1]
    return torch.cat([network.head(last), last.mean(dim=(2, 3))], dim=1)


def fid_lite_rows(features: Float[np.ndarray, "t 1600"]) -> Float[np.ndarray, "t 1280"]:
    """fid-lite: EfficientNet-Lite0's pooled features of every frame.

    Range of the distance: 0 upwards. Resolution: 224x224, bilinear with antialias, sides scaled
    apart. Colours: RGB in [0, 1], (level - 127) / 128. Backbone: efficientnet-lite0-57934424.pth
    (SHA-256 begins 57934424). Source: this project, after FID; its figures do not compare with FID.
    """
    return features[:, :_HEAD]


def fvd_lite_rows(features: Float[np.ndarray, "t 1600"]) -> Float[np.ndarray, "n 640"]:
    """fvd-lite: look and change of every 16-frame window as EfficientNet-Lite0 sees them.

    A frame's 320 features are the last stage's, averaged over space. A window's are their mean over
    its frames and the mean absolute change from one frame to the next: frames in another order or
    that flicker have another second half.

    Range of the distance: 0 upwards. Resolution: 224x224, bilinear with antialias, sides scaled
    apart. Colours: RGB in [0, 1], (level - 127) / 128. Backbone: efficientnet-lite0-57934424.pth
    (SHA-256 begins 57934424). Source: this project, after FVD; its figures do not compare with FVD.
    Windows do not overlap; what is left at a clip's end is dropped.
    """
    kept = features[: len(features) // WINDOW * WINDOW, _HEAD:]
    frames = rearrange(kept, "(n s) d -> n s d", s=WINDOW)
    changes = np.abs(np.diff(frames, axis=1)).mean(axis=1)
    return np.concatenate([frames.mean(axis=1), changes], axis=1)
