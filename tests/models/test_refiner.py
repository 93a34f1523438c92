"""The refiner before and while it learns."""

import torch

from dreampose.models.refiner import Refiner


def inputs(height=32, width=24):
    generator = torch.Generator().manual_seed(0)
    decoded, warped = (torch.rand(2, 3, height, width, generator=generator) for _ in range(2))
    confidence, body = (torch.rand(2, 1, height, width, generator=generator) for _ in range(2))
    return decoded, warped, confidence, (body > 0.5).float()


def test_initially_the_warp_is_weighted_by_its_confidence():
    decoded, warped, confidence, body = inputs()
    out = Refiner()(decoded, warped, confidence, body)
    share = 1 / (1 + torch.exp(-4 * (2 * confidence - 1)))
    assert torch.allclose(out, decoded * (1 - share) + warped * share, atol=1e-6)


def test_it_works_on_any_size_and_all_weights_learn():
    refiner = Refiner()
    torch.nn.init.normal_(refiner.leave.weight, std=0.1)
    decoded, warped, confidence, body = inputs(20, 36)
    out = refiner(decoded, warped, confidence, body)
    assert out.shape == decoded.shape
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in refiner.parameters())


def test_it_is_saved_and_loaded(tmp_path):
    refiner = Refiner(width=8, deep_width=8)
    torch.nn.init.normal_(refiner.leave.weight)
    refiner.save_pretrained(tmp_path)
    again = Refiner.from_pretrained(tmp_path)
    given = inputs()
    assert torch.equal(refiner(*given), again(*given))
