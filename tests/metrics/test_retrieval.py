"""Whose truth is nearest: the matrix against single distances, and what counts as kept."""

import torch

from dreampose.metrics import METRICS, Networks, perceptual, retrieval


def test_the_matrix_holds_the_distance_of_every_pair():
    network = Networks().get(METRICS["lpips-lite"])
    preds, truths = torch.rand(2, 3, 40, 32), torch.rand(3, 3, 40, 32)
    truths[1] = preds[0]
    matrix = retrieval.distances(network, preds, truths)
    wanted = [
        [perceptual.lpips_lite(network, pred[None], truth[None]).item() for truth in truths]
        for pred in preds
    ]
    assert torch.allclose(matrix, torch.tensor(wanted), rtol=1e-3, atol=1e-6)
    assert matrix[0].argmin() == 1
    assert matrix[0, 1] < 1e-8


def test_kept_is_who_is_nearer_to_their_own_truth_than_to_every_other():
    matrix = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, 0.4], [0.3, 0.5, 0.3]])
    assert retrieval.kept(matrix).tolist() == [True, False, False]
