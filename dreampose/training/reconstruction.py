"""ReconstructionLoss loss of the decoder stages."""

from jaxtyping import Float
from torch import Tensor

from dreampose import metrics
from dreampose.config import StageConfig
from dreampose.diffusion import losses
from dreampose.errors import InputError
from dreampose.metrics.perceptual import lpips_lite


class ReconstructionLoss:
    """Weighted sum of pixel error, edge error and perceptual error of decoded images.

    It is not an `nn.Module`, so the perceptual network is neither trained nor saved with a stage.

    Args:
        config: weights of the three errors.
        image_range: values of black and white in the images.

    Raises:
        InputError: `perceptual_weight` is set, and the network's weights are not installed or
            `crop_size` is too small for it.
    """

    def __init__(
        self, config: StageConfig, *, image_range: tuple[float, float] = (-1.0, 1.0)
    ) -> None:
        self._config, self._range = config, image_range
        self._network = None
        if config.perceptual_weight:
            metric = metrics.METRICS["lpips-lite"]
            if 0 < config.crop_size < metric.min_size:
                raise InputError(
                    f"crop_size must be at least {metric.min_size} with perceptual_weight, "
                    f"got {config.crop_size}"
                )
            self._network = metrics.Networks().get(metric)

    def __call__(
        self, images: Float[Tensor, "b 3 H W"], truth: Float[Tensor, "b 3 H W"]
    ) -> Float[Tensor, ""]:
        """Computes the loss of decoded images."""
        loss = losses.reconstruction_loss(images, truth, edge_weight=self._config.edge_weight)
        if self._network is None:
            return loss
        low, high = self._range
        network = self._network.to(images.device)
        pred, true = ((x.float() - low) / (high - low) for x in (images, truth))
        return loss + self._config.perceptual_weight * lpips_lite(network, pred, true).mean()
