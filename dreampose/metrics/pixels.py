"""Scores of pixels alone, a value per frame. Knows nothing of networks.

Frames are 8-bit RGB of equal size, taken at the resolution in which they come; all arithmetic is in
64-bit floats, pixels in [0, 1] unless said otherwise; a few frames at a time, since a whole clip in
such floats may not fit.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt8

MAX_PSNR = 100.0
"""Decibels given to equal frames, whose true value is infinite, so that means exist."""

STATIC_RANGE = 8
"""Levels of 255 by which a pixel of the truth may vary and still count as static: H.264's noise."""


def l1(
    pred: UInt8[np.ndarray, "t H W 3"], truth: UInt8[np.ndarray, "t H W 3"]
) -> Float[np.ndarray, " t"]:
    """Mean absolute difference of all pixels and channels.

    Range: 0 (equal) to 1. Resolution: as given. Colours: RGB in [0, 1]. Backbone: none.
    Source: column L1 of DreamPose, table 1 (arXiv 2304.06025).
    """
    return np.array([np.abs(a - b).mean() for a, b in _frames(pred, truth)])


def psnr(
    pred: UInt8[np.ndarray, "t H W 3"], truth: UInt8[np.ndarray, "t H W 3"]
) -> Float[np.ndarray, " t"]:
    """Peak signal-to-noise ratio, 10 log10(1 / MSE), of each frame.

    Range: 0 dB (black against white) upwards; equal frames get 100 dB. Resolution: as given.
    Colours: RGB in [0, 1] as floats, since differences of 8-bit integers overflow. Backbone: none.
    Source: equals scikit-image's `peak_signal_noise_ratio(..., data_range=1)`.
    """
    error = np.array([np.square(a - b).mean() for a, b in _frames(pred, truth)])
    floor = 10 ** (-MAX_PSNR / 10)
    return -10 * np.log10(np.maximum(error, floor))


def ssim(
    pred: UInt8[np.ndarray, "t H W 3"], truth: UInt8[np.ndarray, "t H W 3"]
) -> Float[np.ndarray, " t"]:
    """Structural similarity, mean over pixels and channels, of each frame.

    Range: -1 to 1 (equal). Resolution: as given, at least 11x11. Colours: RGB in [0, 1].
    Backbone: none. Source: Wang et al. 2004 (Gaussian window of sigma 1.5, 11x11, biased
    covariance), computed by scikit-image. The paper does not state its window.
    """
    from skimage.metrics import structural_similarity  # of an extra; training does without

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
    """Mean absolute error of frame differences against the truth's: flicker that is not motion.

    E = mean |(x_{t+1} - x_t) - (y_{t+1} - y_t)|; one value per pair of frames, t - 1 in all.

    Range: 0 (every change is the truth's) to 2. Resolution: as given. Colours: RGB in [0, 1].
    Backbone: none. Source: this project; a constant error of colour costs nothing here.
    """
    errors = itertools.pairwise(a - b for a, b in _frames(pred, truth))
    return np.array([np.abs(after - before).mean() for before, after in errors])


def static_variance(
    pred: UInt8[np.ndarray, "t H W 3"], truth: UInt8[np.ndarray, "t H W 3"]
) -> Float[np.ndarray, " t"]:
    """Variance over time of the pixels that stand still in the truth; their mean is the score.

    Static are pixels whose every channel varies by at most 8 levels of 255 over the truth's whole
    clip. Each value is the mean squared distance of a frame from the clip's mean there; NaN
    throughout where nothing stands still.

    Range: 0 (no flicker) to 16256. Resolution: as given. Colours: RGB in 8-bit levels, so the unit
    is levels squared. Backbone: none. Source: this project.
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
