"""Reading of Stable Diffusion and CLIP weights.

A base is a folder in diffusers' layout (safetensors or .bin, with or without shards, full or half
precision), a single `.safetensors` or `.ckpt` file, or a hub id. All sizes come from its
configuration.
"""

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import yaml
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.loaders import single_file_utils as ldm
from torch import Tensor
from transformers import CLIPVisionModel

from dreampose.config import Recipe, replace
from dreampose.errors import InputError
from dreampose.io import hub, weights
from dreampose.models.vae import VAE
from dreampose.recipes import sd14

CLIP = "openai/clip-vit-base-patch32"
"""The paper's image encoder."""

_STEM = "diffusion_pytorch_model"
_VAES = ("AutoencoderKL", "AutoencoderTiny")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_NEEDED = (
    f"unet/config.json, unet/{_STEM}.safetensors (or .bin), vae/config.json, "
    f"vae/{_STEM}.safetensors (or .bin) and scheduler/scheduler_config.json"
)


@dataclass(frozen=True, kw_only=True)
class Base:
    """Components of a base, in float32.

    Attributes:
        vae: the VAE.
        unet: the UNet, not yet widened.
        image_encoder: the CLIP vision model.
        scheduler: stated settings of the noise process.
        source: origin of base and image encoder, for the model card.
    """

    vae: VAE
    unet: UNet2DConditionModel
    image_encoder: CLIPVisionModel
    scheduler: Mapping[str, Any]
    source: str


def read(
    base: str | Path,
    image_encoder: str | Path | None = None,
    *,
    revision: str | None = None,
    config: str | Path | None = None,
) -> Base:
    """Reads a base and an image encoder.

    Args:
        base: folder, file or hub id of a Stable Diffusion 1.x model.
        image_encoder: folder or hub id of a CLIP model; default: `image_encoder` in the folder of
            the base, else the paper's from the hub.
        revision: revision of the base on the hub; default: the pinned one.
        config: architecture of a base in a single file: a folder with `unet/config.json` and
            `vae/config.json`, or a YAML file of the original code. Default: the YAML of the same
            name beside the file, else Stable Diffusion 1.x.

    Raises:
        InputError: a file is missing or damaged, or the components do not fit together.
    """
    if Path(base).is_file():
        vae, unet = _single_file(Path(base), config)
        scheduler: dict[str, Any] = {}
        folder, source = None, Path(base).name
    else:
        patterns = [f"{part}/*{end}" for part in ("unet", "vae", "scheduler", "image_encoder")
                    for end in (".json", ".safetensors", ".bin")]  # fmt: skip
        folder, source = hub.folder("base", base, revision, patterns, _NEEDED)
        vae = _component(folder / "vae", "base vae", _VAES)
        unet = _component(folder / "unet", "base unet", ("UNet2DConditionModel",))
        scheduler = _scheduler(folder / "scheduler" / "scheduler_config.json")
    encoder, encoder_source = _image_encoder(image_encoder, folder)
    width, expected = encoder.config.hidden_size, unet.config["cross_attention_dim"]
    if width != expected:
        raise InputError(
            f"image_encoder must have the width {expected}, the cross-attention width of the "
            f"base's unet, got {width} of {encoder_source}"
        )
    channels, latent_channels = unet.config["in_channels"], vae.config["latent_channels"]
    if channels != latent_channels:
        raise InputError(
            f"base must be a plain text-to-image model whose unet has {latent_channels} input "
            f"channels, got {channels}"
        )
    return Base(
        vae=vae,
        unet=unet,
        image_encoder=encoder,
        scheduler=scheduler,
        source=f"{source}, image encoder {encoder_source}",
    )


def recipe_of(base: Base, *, height: int | None = None, width: int | None = None) -> Recipe:
    """The paper's recipe with the sizes of a base.

    Args:
        base: result of `read`.
        height: frame height in pixels; default: that of the UNet's `sample_size` if it is a pair,
            else 640 as in the paper.
        width: frame width in pixels; default: as for `height`, else 512.
    """
    paper = sd14()
    sizes = {
        "vae_class": type(base.vae).__name__,
        "vae": _sizes(base.vae, paper.vae, ignored=("sample_size",)),
        "unet": _sizes(base.unet, paper.unet),
        "image_encoder": {key: getattr(base.image_encoder.config, key) for key in
                          paper.image_encoder},
    }  # fmt: skip
    sample = base.unet.config["sample_size"]
    recipe = replace(paper, **sizes, scheduler={**paper.scheduler, **base.scheduler})
    stated: tuple[int | None, int | None] = (None, None)
    if isinstance(sample, list | tuple):
        stated = (sample[0] * recipe.downscale, sample[1] * recipe.downscale)
    return replace(
        recipe,
        height=height or stated[0] or paper.height,
        width=width or stated[1] or paper.width,
    )


def modern_names(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts old names of a VAE's attention layers to the current ones.

    Old releases name `to_q`, `to_k`, `to_v` and `to_out.0` as `query`, `key`, `value` and
    `proj_attn`. The oldest ones store them as 1x1 convolutions.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in values.items():
        if found := re.fullmatch(r"(.*\battentions\.\d+)\.(\w+)\.(weight|bias)", key):
            path, layer, kind = found.groups()
            key = f"{path}.{_OLD_ATTENTION.get(layer, layer)}.{kind}"
        if re.search(r"\battentions\.\d+\.to_(q|k|v|out\.0)\.weight$", key) and value.ndim == 4:
            value = value[:, :, 0, 0]
        renamed[key] = value
    return renamed


def _component(folder: Path, name: str, classes: tuple[str, ...]) -> Any:
    config = _json(folder / "config.json", name)
    kind = config.get("_class_name", classes[0])
    if kind not in classes:
        raise InputError(f"{name} must be a {' or '.join(classes)}, got {kind} in {str(folder)!r}")
    path, values = _weights(folder, name)
    return _built(getattr(diffusers, kind), config, values, name, path)


def _built(
    kind: type[ModelMixin], config: Mapping[str, Any], values: Mapping[str, Tensor], name: str,
    path: Path,
) -> Any:  # fmt: skip
    accepted = set(inspect.signature(kind.__init__).parameters)
    options = {key: value for key, value in config.items() if key in accepted}
    try:
        with torch.device("meta"):
            module = kind(**options)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{name} must have a usable configuration, got {error}") from error
    weights.fit(module, modern_names(values) if kind.__name__ in _VAES else values, name, path)
    return module.eval()


def _weights(folder: Path, name: str) -> tuple[Path, dict[str, Tensor]]:
    """Reads the weights of a component.

    Full precision is preferred to half, safetensors to .bin, and a single file to shards.
    """
    for variant in ("", ".fp16", ".*"):
        for end in (".safetensors", ".bin"):
            for path in sorted(folder.glob(f"{_STEM}{variant}{end}")):
                if "-of-" not in path.name:
                    return path, weights.read(path, name)
            for path in sorted(folder.glob(f"{_STEM}{end}.index{variant}.json")):
                return path, weights.read_shards(path, name)
    raise InputError(
        f"{name} must be weights in {_STEM}.safetensors or .bin, got none in {str(folder)!r}"
    )


def _single_file(path: Path, config: str | Path | None) -> tuple[Any, Any]:
    values = weights.read(path, "base")
    if not any(key.startswith(ldm.LDM_UNET_KEY) for key in values):
        raise InputError(
            f"base must be a Stable Diffusion file with tensors named {ldm.LDM_UNET_KEY}…, got "
            f"{str(path)!r} without any"
        )
    unet_config, vae_config = _file_config(path, config, values)
    try:
        unet = ldm.convert_ldm_unet_checkpoint(values, dict(unet_config))
        vae = ldm.convert_ldm_vae_checkpoint(values, dict(vae_config))
    except (KeyError, IndexError) as error:
        raise InputError(
            f"base must have the layers of its configuration, got no {error} in {str(path)!r}"
        ) from error
    return (
        _built(diffusers.AutoencoderKL, vae_config, vae, "base vae", path),
        _built(UNet2DConditionModel, unet_config, unet, "base unet", path),
    )


def _file_config(
    path: Path, config: str | Path | None, values: Mapping[str, Tensor]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    if config is None and path.with_suffix(".yaml").is_file():
        config = path.with_suffix(".yaml")
    if config is None:
        return sd14().unet, sd14().vae
    if Path(config).is_dir():
        return tuple(_json(Path(config) / part / "config.json", "base config")
                     for part in ("unet", "vae"))  # pyright: ignore[reportReturnType] # fmt: skip
    try:
        original = yaml.safe_load(Path(config).read_text("utf-8"))
        return (
            ldm.create_unet_diffusers_config_from_ldm(original, values),
            ldm.create_vae_diffusers_config_from_ldm(original, values),
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(
            f"base config must be a folder or the original code's YAML, got {str(config)!r} "
            f"({error})"
        ) from error


def _image_encoder(source: str | Path | None, base: Path | None) -> tuple[CLIPVisionModel, str]:
    if source is None:
        inside = None if base is None else base / "image_encoder"
        source = inside if inside is not None and inside.is_dir() else CLIP
    needed = "config.json and model.safetensors (or pytorch_model.bin)"
    patterns = ["config.json", "*.safetensors", "pytorch_model*"]
    folder, label = hub.folder("image_encoder", source, None, patterns, needed)
    variants = [path.name.split(".")[1] for path in folder.glob("model.*.safetensors")]
    options: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True}
    if variants and not (folder / "model.safetensors").is_file():
        options["variant"] = variants[0]
    try:
        load: Any = CLIPVisionModel.from_pretrained
        encoder, facts = load(str(folder), output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"image_encoder must be a CLIP model with {needed}, got {str(folder)!r} ({error})"
        ) from error
    if missing := sorted(facts["missing_keys"]):
        raise InputError(
            f"image_encoder must hold every tensor of a CLIP vision model, got {len(missing)} "
            f"missing: {', '.join(missing[:20])} in {str(folder)!r}"
        )
    return encoder.eval(), label


def _scheduler(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    known = sd14().scheduler
    return {key: value for key, value in _json(path, "base scheduler").items() if key in known}


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{name} must have a readable {path.name}, got {str(path)!r}") from error
    if not isinstance(values, dict):
        raise InputError(f"{name} must have an object in {path.name}, got {str(path)!r}")
    return values


def _sizes(
    module: Any, paper: Mapping[str, Any], *, ignored: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Settings of a component: those named in the paper's recipe, and those not at default."""
    defaults = {key: value.default for key, value in
                inspect.signature(type(module).__init__).parameters.items()}  # fmt: skip
    found: dict[str, Any] = {}
    for key, default in defaults.items():
        value = module.config.get(key, default)
        value = tuple(value) if isinstance(value, list) else value
        named = key in paper or key.endswith("block_out_channels")
        if key not in ("self", *ignored) and (named or value != default):
            found[key] = value
    return found
