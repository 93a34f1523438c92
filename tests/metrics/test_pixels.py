"""Pixel scores against other implementations and their formulas."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio

from dreampose.metrics import pixels

BLACK, WHITE = np.zeros((2, 16, 12, 3), np.uint8), np.full((2, 16, 12, 3), 255, np.uint8)


def test_psnr_equals_torchmetrics(clips):
    images, true_images = (torch.from_numpy(clip).double() / 255 for clip in clips)
    wanted = peak_signal_noise_ratio(
        images, true_images, data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    assert pixels.psnr(*clips) == pytest.approx(wanted.numpy(), abs=1e-4)


def test_ssim_equals_the_formula_of_wang_et_al(clips):
    pred, truth = clips
    found = pixels.ssim(pred, truth)
    wanted = [
        structural_similarity(
            a / 255, b / 255, channel_axis=-1, data_range=1,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
        for a, b in zip(pred, truth, strict=True)
    ]  # fmt: skip
    assert found == pytest.approx(wanted, abs=1e-4)

    def blur(x):
        return gaussian_filter(x, sigma=(1.5, 1.5, 0), truncate=3.5)

    x, y = pred[4] / 255, truth[4] / 255
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    both = blur(x * y) - mean_x * mean_y
    score = ((2 * mean_x * mean_y + 1e-4) * (2 * both + 9e-4)) / (
        (mean_x**2 + mean_y**2 + 1e-4) * (var_x + var_y + 9e-4)
    )
    assert found[4] == pytest.approx(score[5:-5, 5:-5].mean(), abs=1e-4)


def test_8_bit_differences_do_not_overflow():
    assert pixels.l1(BLACK, WHITE) == pytest.approx([1, 1])
    assert pixels.l1(WHITE, BLACK) == pytest.approx([1, 1])
    assert pixels.psnr(BLACK, WHITE) == pytest.approx([0, 0])
    assert pixels.temporal_difference_error(
        np.stack([BLACK[0], WHITE[0]]), np.stack([WHITE[0], BLACK[0]])
    ) == pytest.approx([2])


def test_equal_clips_have_the_best_scores(clips):
    _, truth = clips
    assert (pixels.l1(truth, truth) == 0).all()
    assert (pixels.psnr(truth, truth) == pixels.MAX_PSNR).all()
    assert pixels.ssim(truth, truth) == pytest.approx(np.ones(len(truth)))
    assert (pixels.temporal_difference_error(truth, truth) == 0).all()
    assert (pixels.static_variance(truth, truth) == 0).all()


def test_temporal_difference_error_measures_flicker_and_ignores_constant_colour_errors(clips):
    _, truth = clips
    darker = truth - 20
    assert pixels.temporal_difference_error(darker, truth) == pytest.approx(np.zeros(17), abs=1e-12)
    flickering = truth.copy()
    flickering[1::2] -= 20
    found = pixels.temporal_difference_error(flickering, truth)
    assert found == pytest.approx(np.full(17, 20 / 255))


def test_static_variance_uses_only_static_pixels(clips):
    _, truth = clips
    pred = truth.copy()
    moving = (truth != truth[0]).any(axis=(0, 3))
    pred[:, moving] = np.random.default_rng(0).integers(0, 255, (18, moving.sum(), 3))
    assert (pixels.static_variance(pred, truth) == 0).all()
    pred[1::2] = np.maximum(pred[1::2], 10) - 10  # every second frame is ten levels darker
    wanted = np.mean(
        [
            np.var(pred[:, row, column, channel].astype(float))
            for row, column in zip(*np.nonzero(~moving), strict=True)
            for channel in range(3)
        ]
    )
    assert pixels.static_variance(pred, truth).mean() == pytest.approx(wanted)
    assert wanted == pytest.approx(25)


def test_codec_noise_counts_as_static_and_clips_without_static_pixels_give_nan(clips):
    pred, truth = clips
    noisy = truth.copy()
    noisy[::2] -= np.uint8(pixels.STATIC_RANGE)
    assert np.isfinite(pixels.static_variance(pred, noisy)).all()
    noisy[::2] -= 1
    assert np.isnan(pixels.static_variance(pred, noisy)).all()
