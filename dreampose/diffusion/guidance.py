"""Dual classifier-free guidance on image and pose."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dreampose.models.adapter import null_conditions
from dreampose.types import Conditions, DenoiserFunction, Model


def guide(
    denoiser: DenoiserFunction,
    conditions: Conditions,
    image_scale: float,
    pose_scale: float,
    *,
    join_branches: bool = True,
) -> Model:
    """Makes a model of (x, t) with dual classifier-free guidance.

    The guidance equation (arXiv 2304.06025, section 4.4), with s_I = `image_scale` and
    s_p = `pose_scale`, is

        eps_hat = eps(z, ∅, ∅) + s_I [eps(z, c_I, ∅) - eps(z, ∅, ∅)]
                               + s_p [eps(z, c_I, c_p) - eps(z, c_I, ∅)]

    Sorted by branch, the same sum is

        eps_hat = (1 - s_I) eps(z, ∅, ∅) + (s_I - s_p) eps(z, c_I, ∅) + s_p eps(z, c_I, c_p).

    Branches with factor zero are skipped: s_I = s_p = 1 needs one branch, any other s_I = s_p and
    s_I = 1 need two. The sum is linear, so it applies to every prediction type.

    Args:
        denoiser: (x, t, conditions) -> prediction.
        conditions: c_I and c_p of the batch.
        image_scale: s_I; 1 is no guidance.
        pose_scale: s_p; 1 is no guidance.
        join_branches: run the branches as one batch (faster) or one after the other (less
            memory); results agree up to float rounding.
    """
    factors = (1 - image_scale, image_scale - pose_scale, pose_scale)
    inputs = (
        null_conditions(conditions),
        null_conditions(conditions, image=False),
        conditions,
    )
    branches = [(f, c) for f, c in zip(factors, inputs, strict=True) if f != 0]
    count = len(branches)
    joined = Conditions(
        tokens=torch.cat([branch.tokens for _, branch in branches]),
        poses=torch.cat([branch.poses for _, branch in branches]),
        surface=None
        if conditions.surface is None
        else torch.cat([branch.surface for _, branch in branches if branch.surface is not None]),
    )

    def model(x: Float[Tensor, "b c h w"], t: Shaped[Tensor, "*b"]) -> Float[Tensor, "b c h w"]:
        if join_branches:
            steps = t.repeat(count) if t.ndim else t
            predictions = denoiser(x.repeat(count, 1, 1, 1), steps, joined).chunk(count)
        else:
            predictions = [denoiser(x, t, branch) for _, branch in branches]
        guided = torch.zeros_like(x)
        for (factor, _), prediction in zip(branches, predictions, strict=True):
            guided = guided + factor * prediction
        return guided

    return model
