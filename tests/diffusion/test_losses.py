"""Losses against their formulas."""

import math

import pytest
import torch

from dreampose.diffusion import losses


def test_denoising_loss_is_the_papers_mean_square() -> None:
    prediction, target = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    expected = (prediction - target).square().mean()
    assert losses.denoising_loss(prediction, target).item() == pytest.approx(expected.item())


def test_min_snr_weights_follow_the_paper() -> None:
    snr = torch.tensor([0.5, 5.0, 50.0])
    epsilon = losses.min_snr_weights(snr, gamma=5.0, prediction_type="epsilon")
    velocity = losses.min_snr_weights(snr, gamma=5.0, prediction_type="v_prediction")
    assert epsilon.tolist() == pytest.approx([1.0, 1.0, 0.1])
    assert velocity.tolist() == pytest.approx([0.5 / 1.5, 5 / 6, 5 / 51])


def test_edges_cost_only_where_differences_differ() -> None:
    truth = torch.zeros(1, 3, 4, 4)
    shifted = truth + 0.25
    assert losses.reconstruction_loss(shifted, truth, edge_weight=1.0).item() == pytest.approx(0.25)
    stripes = truth.clone()
    stripes[..., ::2] = 0.5
    # Mean error 0.25, no difference between rows, 0.5 between any two columns.
    assert losses.reconstruction_loss(stripes, truth, edge_weight=1.0).item() == pytest.approx(0.75)


def test_kl_is_zero_for_the_unit_normal_and_summed_over_a_latent() -> None:
    zeros = torch.zeros(2, 4, 3, 3)
    assert losses.kl_loss(zeros, zeros).item() == 0
    assert losses.kl_loss(zeros + 1, zeros).item() == pytest.approx(0.5 * 4 * 9)


def test_identity_loss_is_smaller_for_the_same_person() -> None:
    embeddings = torch.eye(4)
    assert losses.identity_loss(embeddings, embeddings).item() < 1e-3
    assert losses.identity_loss(embeddings, embeddings.roll(1, 0)).item() > 5
    same = torch.ones(4, 4)
    assert losses.identity_loss(same, same).item() == pytest.approx(math.log(4))
