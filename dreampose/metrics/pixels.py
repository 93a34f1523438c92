"""Pixel scores, one value per frame.

Frames are 8-bit RGB of equal size and are not resized. Arithmetic is in float64 with pixels in
[0, 1] unless stated otherwise. Frames are converted one at a time, because a whole clip in float64
may not fit into memory.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt8

MAX_PSNR = 100.0
"""Upper limit in dB: the value of equal frames, whose PSNR is infinite."""

STATIC_RANGE = 8
"""Largest variation of a static pixel in 8-bit levels, which allows for the noise of H.264."""


def l1(
    pred: UInt8[np.ndarray, "t H W 3"], truth: UInt8[np.ndarray, "t H W 3"]
) -> Float[np.ndarray, " t"]:
    """Mean absolute difference of all pixels and channels.

    Range: 0 (equal) to 1. Resolution: original. Colours: RGB in [0, 1]. Backbone: none.
    Source: column L1 of DreamPose, table 1 (arXiv 2304.06025).
    """
    return np.array([np.abs(a - b).mean() for a, b in _frames(pred, truth)])


def psnr(
    pred: UInt8[np.ndarray, "t H W 3"], truth: UInt8[np.ndarray, "t H W 3"]
) -> Float[np.ndarray, " t"]:
    """Peak signal-to-noise ratio, 10 log10(1 / MSE), of each frame.

    Range: 0 dB (black against white) to 100 dB (equal). Resolution: original. Colours: RGB in
    [0, 1]. Backbone: none. Source: scikit-image.
    """
    from skimage.metrics import peak_signal_noise_ratio  # only in the extra `metrics`

    with np.errstate(divide="ignore"):  # equal frames
        values = [peak_signal_noise_ratio(b, a, data_range=1.0) for a, b in _frames(pred, truth)]
    return np.minimum(np.array(values, np.float64), MAX_PSNR)


def ssim(
    pred: UInt8[np.ndarray, "t H W 3"], truth: UInt8[np.ndarray, "t H W 3"]
) -> Float[np.ndarray, " t"]:
    """Structural similarity, averaged over pixels and channels, of each frame.

    Range: -1 to 1 (equal). Resolution: original, at least 11x11. Colours: RGB in [0, 1].
    Backbone: none. Source: Wang et al. 2004 (Gaussian window of sigma 1.5, 11x11, biased
    covariance), computed by scikit-image. The paper does not state its window. torchmetrics
    averages over the padded border as well, which differs by 0.005 on 160x128 frames.
    """
    from skimage.metrics import structural_similarity  # only in the extra `metrics`

    values = [
        structural_similarity(
            a,
            b,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=-1,
        )
        for a, b in _frames(pred, truth)
    ]
    return np.array(values, np.float64)


def temporal_difference_error(
    pred: UInt8[np.ndarray, "t H W 3"], truth: UInt8[np.ndarray, "t H W 3"]
) -> Float[np.ndarray, " n"]:
    """Mean absolute error of the differences between consecutive frames: flicker without motion.

    E = mean |(x_{t+1} - x_t) - (y_{t+1} - y_t)|; one value per pair of frames, so t - 1 values.

    Range: 0 (changes equal to the truth's) to 2. Resolution: original. Colours: RGB in [0, 1].
    Backbone: none. Source: this project. A constant colour error has no effect.
    """
    errors = itertools.pairwise(a - b for a, b in _frames(pred, truth))
    return np.array([np.abs(after - before).mean() for before, after in errors])


def static_variance(
    pred: UInt8[np.ndarray, "t H W 3"], truth: UInt8[np.ndarray, "t H W 3"]
) -> Float[np.ndarray, " t"]:
    """Variance over time of the pixels that are static in the truth.

    A pixel is static if each of its channels varies by at most 8 levels over the whole true clip.
    The value of a frame is the mean squared difference of its static pixels from their mean over
    time, in squared levels. It is NaN for all frames if no pixel is static.

    Range: 0 (no flicker) to 16256. Resolution: original. Colours: RGB in 8-bit levels. Backbone:
    none. Source: this project.
    """
    static = (np.ptp(truth, axis=0) <= STATIC_RANGE).all(axis=-1)
    if not static.any():
        return np.full(len(pred), np.nan)
    mean = sum(frame[static].astype(np.float64) for frame in pred) / len(pred)
    return np.array([np.square(frame[static] - mean).mean() for frame in pred])


def _frames(
    pred: UInt8[np.ndarray, "t H W 3"], truth: UInt8[np.ndarray, "t H W 3"]
) -> Iterator[tuple[Float[np.ndarray, "H W 3"], Float[np.ndarray, "H W 3"]]]:
    """Pairs of frames in [0, 1]."""
    for a, b in zip(pred, truth, strict=True):
        yield a / 255, b / 255
