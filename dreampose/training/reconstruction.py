"""What stages that learn to decode are asked for. Knows nothing of latents."""

from jaxtyping import Float
from torch import Tensor

from dreampose import metrics
from dreampose.config import StageConfig
from dreampose.diffusion import losses
from dreampose.errors import InputError
from dreampose.metrics.perceptual import lpips_lite


class Reconstruction:
    """Error of decoded pictures: of pixels, of edges, and of what a network sees in them.

    No module, so that the network is neither trained nor saved with the stage.

    Args:
        config: weights of the three.
        image_range: black and white of the pictures.

    Raises:
        InputError: the network is wanted and its weights are not installed, or crops are too small
            for it.
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
                    f"crop_size must be at least {metric.min_size} where perceptual_weight is "
                    f"used, got {config.crop_size}"
                )
            self._network = metrics.Networks().get(metric)

    def __call__(
        self, images: Float[Tensor, "b 3 H W"], truth: Float[Tensor, "b 3 H W"]
    ) -> Float[Tensor, ""]:
        """The sum, weighted."""
        loss = losses.reconstruction_loss(images, truth, edge_weight=self._config.edge_weight)
        if self._network is None:
            return loss
        low, high = self._range
        network = self._network.to(images.device)
        pred, true = ((x.float() - low) / (high - low) for x in (images, truth))
        return loss + self._config.perceptual_weight * lpips_lite(network, pred, true).mean()
