"""Losses of the training stages. Knows nothing of models, data or the training loop."""

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional


def denoising_loss(
    prediction: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    weights: Float[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Squared error of the denoiser, L = E || eps - eps_hat(z_t, t, c) ||² (paper, eq. 1).

    Args:
        prediction: what the denoiser said.
        target: noise or velocity, whatever the schedule predicts.
        weights: a factor per sample; `None` is the paper's plain mean.
    """
    error = functional.mse_loss(prediction.float(), target.float(), reduction="none")
    per_sample = error.mean(dim=(1, 2, 3))
    return per_sample.mean() if weights is None else (per_sample * weights).mean()


def min_snr_weights(
    snr: Float[Tensor, " b"], *, gamma: float, prediction_type: str
) -> Float[Tensor, " b"]:
    """Weights that even out the timesteps (Hang et al. 2023, arXiv 2303.09556, eq. 6).

    Args:
        snr: signal-to-noise ratio of each sample's timestep, alpha² / sigma².
        gamma: where the ratio is clipped; the paper uses 5.
        prediction_type: 'epsilon' or 'v_prediction', what the squared error is taken of.
    """
    clipped = snr.clamp(max=gamma)
    return clipped / (snr + 1) if prediction_type == "v_prediction" else clipped / snr


def reconstruction_loss(
    images: Float[Tensor, "b c h w"], truth: Float[Tensor, "b c h w"], *, edge_weight: float = 0.0
) -> Float[Tensor, ""]:
    """Mean absolute error of pixels, plus that of their differences to the next row and column.

    The second term asks for edges and patterns that plain L1 leaves blurred.
    """
    error = images.float() - truth.float()
    loss = error.abs().mean()
    if edge_weight:
        rows = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        columns = (error[..., 1:] - error[..., :-1]).abs().mean()
        loss = loss + edge_weight * (rows + columns)
    return loss


def reading_loss(
    read: Float[Tensor, "b n c"], truth: Float[Tensor, "b n c"], seen: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Squared error of what is read from an image's tokens, over the share of each that is image.

    Args:
        read: a layer's guess at what each token's patch shows.
        truth: what it shows.
        seen: share of the patch that lies in the image, 0 to 1.
    """
    error = (read.float() - truth.float()).pow(2).mean(dim=(0, 2))
    return (error * seen).sum() / seen.sum()


def kl_loss(mean: Float[Tensor, "b c h w"], logvar: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Divergence from the unit normal: summed over a latent, averaged over the batch."""
    divergence = 0.5 * (mean.pow(2) + logvar.exp() - 1.0 - logvar)
    return divergence.float().sum(dim=(1, 2, 3)).mean()


def identity_loss(
    first: Float[Tensor, "b d"], second: Float[Tensor, "b d"], *, temperature: float = 0.1
) -> Float[Tensor, ""]:
    """InfoNCE both ways (van den Oord et al. 2018): row i of both is one person, others are not."""
    logits = (
        functional.normalize(first, dim=1) @ functional.normalize(second, dim=1).T / temperature
    )
    labels: Int64[Tensor, " b"] = torch.arange(len(first), device=first.device)
    both = functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)
    return both / 2


def pool_tokens(tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
    """Mean of an image's tokens."""
    return rearrange(tokens, "b n d -> b d n").mean(dim=-1)
