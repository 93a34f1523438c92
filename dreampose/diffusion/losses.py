"""Loss functions of the training stages."""

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
    """Mean squared error of the denoiser, L = E || eps - eps_hat(z_t, t, c) ||² (paper, eq. 1).

    Args:
        prediction: output of the denoiser.
        target: noise, velocity or sample, by the scheduler's `prediction_type`.
        weights: factor per sample; None is the unweighted mean of the paper.
    """
    error = functional.mse_loss(prediction.float(), target.float(), reduction="none")
    per_sample = error.mean(dim=(1, 2, 3))
    return per_sample.mean() if weights is None else (per_sample * weights).mean()


def min_snr_weights(
    snr: Float[Tensor, " b"], *, gamma: float, prediction_type: str
) -> Float[Tensor, " b"]:
    """Min-SNR weights of timesteps (Hang et al. 2023, arXiv 2303.09556, eq. 6).

    Args:
        snr: signal-to-noise ratio alpha² / sigma² of each sample's timestep.
        gamma: upper limit of the ratio; the paper uses 5.
        prediction_type: 'epsilon' or 'v_prediction'.
    """
    clipped = snr.clamp(max=gamma)
    return clipped / (snr + 1) if prediction_type == "v_prediction" else clipped / snr


def reconstruction_loss(
    images: Float[Tensor, "b c h w"], truth: Float[Tensor, "b c h w"], *, edge_weight: float = 0.0
) -> Float[Tensor, ""]:
    """L1 error of pixels, plus the weighted L1 error of vertical and horizontal differences.

    The second term penalises blurred edges and patterns.

    Args:
        images: reconstructed pixels.
        truth: original pixels.
        edge_weight: weight of the second term; 0 leaves it out.
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
    """Mean squared error of a probe on image tokens, weighted by the visible part of each patch.

    Args:
        read: values that a linear layer predicts from each token.
        truth: true mean values of the token's patch.
        seen: fraction of the patch that lies inside the image, in [0, 1].
    """
    error = (read.float() - truth.float()).pow(2).mean(dim=(0, 2))
    return (error * seen).sum() / seen.sum()


def kl_loss(mean: Float[Tensor, "b c h w"], logvar: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """KL divergence from the standard normal, summed over each latent, averaged over the batch."""
    divergence = 0.5 * (mean.pow(2) + logvar.exp() - 1.0 - logvar)
    return divergence.float().sum(dim=(1, 2, 3)).mean()


def identity_loss(
    first: Float[Tensor, "b d"], second: Float[Tensor, "b d"], *, temperature: float = 0.1
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE loss of identity embeddings (van den Oord et al. 2018).

    Args:
        first: embeddings of one frame of each subject.
        second: embeddings of another frame of the same subjects, in the same order.
        temperature: divides the cosine similarities.
    """
    logits = (
        functional.normalize(first, dim=1) @ functional.normalize(second, dim=1).T / temperature
    )
    labels: Int64[Tensor, " b"] = torch.arange(len(first), device=first.device)
    both = functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)
    return both / 2


def pool_tokens(tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
    """Mean over the tokens of each image."""
    return rearrange(tokens, "b n d -> b d n").mean(dim=-1)
