"""Memory and operations of the model's code, traced on tensors without contents.

Every operation runs, forward and backward, on torch's fake tensors (no public interface): shapes,
types and lifetimes are real, values are not computed and memory is not allocated. What operations
return and keep is counted exactly: it equals what torch's CPU allocator hands out in real runs,
to a percent (tests/benchmarks/test_tracing.py).

Memory that a kernel allocates and frees by itself is no tensor and depends on the device; it is
bounded instead. On the CPU nearly all of it is convolutions, which copy what they read and write
into another memory layout; cuDNN's workspaces on GPUs are similar. Kernels that pad channels, to 16
on the CPU, exceed the bound where there are fewer channels.
"""

import contextlib
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own customary name
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from dreampose import checkpoints
from dreampose.config import NO_SAVINGS, Recipe, Savings
from dreampose.diffusion.guidance import guide
from dreampose.diffusion.schedulers import noise_process
from dreampose.models import lora
from dreampose.models.adapter import clip_tokens
from dreampose.models.subject import Subject
from dreampose.models.unet import Denoiser
from dreampose.models.vae import LatentCodec, encode_batch_size
from dreampose.pipeline import DreamPosePipeline
from dreampose.training import photo_crops
from dreampose.training.base_stage import BaseStage
from dreampose.training.encoder_stage import EncoderStage
from dreampose.training.memory import moment_bytes, prepare
from dreampose.training.photo_crops import PhotoCrops
from dreampose.training.subject import DecoderStage, SubjectStage
from dreampose.training.vae_stage import VaeStage
from dreampose.types import Conditions


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a computation costs.

    held_bytes: of the tensors that were there when it began (weights). peak_bytes: most that lived
    at once, those included. scratch_bytes: what that rises by where every convolution copies all
    that it reads and writes. flops: a multiplication and an addition count as two.
    """

    held_bytes: int
    peak_bytes: int
    scratch_bytes: int
    flops: int


def measure(build: Callable[[], Any], run: Callable[[Any], Any]) -> Trace:
    """The cost of `run(build())`; what `build` makes counts as held, how it is made does not.

    Args:
        build: makes everything that lives before, such as a model.
        run: what is measured. It may not look into a tensor (`item`, `numpy`).
    """
    ledger = Ledger()
    with FakeTensorMode(allow_non_fake_inputs=True), ledger:
        subject = build()
        ledger.begin()
        held = ledger.live_bytes
        with _norms_in_float32():
            run(subject)
    peak = ledger.peak_bytes
    return Trace(
        held_bytes=held,
        peak_bytes=peak,
        scratch_bytes=max(0, ledger.copying_bytes - peak),
        flops=ledger.flops,
    )


class Ledger(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, from their making to their release.

    `copying_bytes`: most at once in a convolution that copies what it reads and writes. `flops`:
    by torch's formulas. Its own counter is not used, since it follows modules by references in
    circles, which keep recomputed activations alive until the garbage collector comes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self.copying_bytes = 0
        self.flops = 0
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        count = _FORMULAS.get(func.overloadpacket)
        if count is not None:
            self.flops += int(count(*args, **kwargs, out_val=result))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.take(made)
        if func in _CONVOLUTIONS:
            copied = [*made, *(value for value in args if isinstance(value, Tensor))]
            copies = sum(value.nbytes for value in copied)
            self.copying_bytes = max(self.copying_bytes, self.live_bytes + copies)
        return result

    def begin(self) -> None:
        """Counts operations, and what lives at most, from here on."""
        self.peak_bytes = self.copying_bytes = self.live_bytes
        self.flops = 0

    def take(self, tensors: Iterable[Tensor]) -> None:
        """Counts the memory of tensors, each memory once."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage in self._known:
                continue
            size = storage.nbytes()
            self._known[storage] = size
            weakref.finalize(storage, self._release, size).atexit = False
            self.live_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _release(self, size: int) -> None:
        self.live_bytes -= size


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


_aten = torch.ops.aten
_CONVOLUTIONS = (_aten.convolution.default, _aten.convolution_backward.default)
_FORMULAS: Mapping[Any, Callable[..., Any]] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Attention on the CPU never makes the matrix of all pairs, as on GPUs; torch does not count it."""


@contextlib.contextmanager
def _norms_in_float32() -> Generator[None, None, None]:
    """Mixed precision of GPUs computes norms in float32; that of CPUs, traced here, does not.

    The functions themselves are replaced: torch's modes are off where activations are computed
    again in the middle of going backward.
    """

    def widened(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def norm(values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            wide = values.float() if torch.is_autocast_enabled("cpu") else values
            return function(wide, *args, **kwargs)

        return norm

    kept = {name: getattr(F, name) for name in ("group_norm", "layer_norm")}
    for name, function in kept.items():
        setattr(F, name, widened(function))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(F, name, function)


@contextlib.contextmanager
def mixed_precision(precision: str) -> Generator[None, None, None]:
    """Traces what is in the block in 'bf16' as accelerate runs it, or as it is in 'fp32'."""
    assert precision in ("fp32", "bf16"), precision
    if precision == "fp32":
        yield
        return
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a piece of work takes.

    parameters: of each part. num_trained: parameters that change. held_bytes: what lies on the
    device all the time (weights, moments, averages, kept gradients). peak_bytes: most at once.
    scratch_bytes: what kernels may take beside that, see `trace`. flops: of the piece. state_bytes:
    of a checkpoint of it.
    """

    parameters: Mapping[str, int]
    num_trained: int
    held_bytes: int
    peak_bytes: int
    scratch_bytes: int
    flops: int
    state_bytes: int = 0


def without_weights(recipe: Recipe) -> DreamPosePipeline:
    """A recipe's model whose parameters take no memory."""
    # A black null photo would be encoded when a stage is made, of weights that are not there. It
    # costs nothing to speak of.
    with torch.device("meta"):
        pipe = checkpoints.build(replace(recipe, null_image="zeros"))
    # The noise process is no weights: without its values nothing could be run on real tensors.
    pipe.register_modules(scheduler=noise_process(recipe.scheduler))
    return pipe


def give_memory(module: nn.Module) -> None:
    """Puts parameters and buffers that have memory in the place of those that have none."""
    for layer in module.modules():
        for name, value in layer.named_parameters(recurse=False):
            made = torch.empty(value.shape, dtype=value.dtype)
            layer.register_parameter(name, nn.Parameter(made, requires_grad=value.requires_grad))
        for name, value in layer.named_buffers(recurse=False):
            # Zeros, since some are indices.
            setattr(layer, name, torch.zeros(value.shape, dtype=value.dtype))


def codec_of(pipe: DreamPosePipeline) -> LatentCodec:
    """The model's VAE, on its recipe's range of pixels."""
    return LatentCodec(vae=pipe.vae, image_range=pipe.recipe.image_range)


def token_shape(recipe: Recipe) -> tuple[int, int]:
    """Tokens of a photo, and their length."""
    encoder = recipe.image_encoder
    return (encoder["image_size"] // encoder["patch_size"]) ** 2 + 1, encoder["hidden_size"]


def latents(recipe: Recipe, count: int) -> Tensor:
    """Of frames (count c h w)."""
    return torch.zeros(count, recipe.latent_channels, *recipe.latent_size)


def batch_of(recipe: Recipe, size: int) -> dict[str, Tensor]:
    """A batch of the base stage."""
    cells = recipe.latent_size
    batch = {
        "latents": latents(recipe, size),
        "poses": torch.zeros(size, recipe.num_poses, recipe.pose_planes, *cells),
        "photo_latents": latents(recipe, size),
    }
    if recipe.image_encoder_frozen:
        return {**batch, "tokens": torch.zeros(size, *token_shape(recipe))}
    return {
        **batch,
        "photo_poses": torch.zeros(size, recipe.pose_planes, *cells),
        "photos": torch.zeros(size, 3, recipe.height, recipe.width),
    }


def views_of(recipe: Recipe) -> PhotoCrops:
    """Two views of one photo: what finetuning keeps on the CPU and draws from."""
    cells = recipe.latent_size
    return PhotoCrops(
        pixels=np.zeros((1, 2, recipe.height, recipe.width, 3), np.uint8),
        latents=torch.zeros(1, 2, recipe.latent_channels, *cells),
        tokens=torch.zeros(1, 2, *token_shape(recipe)),
        poses=torch.zeros(1, 2, recipe.num_poses, recipe.pose_planes, *cells),
    )


def blank_subject(method: str) -> Subject:
    """A subject for stages that want one."""
    return Subject(name="", recipe="", base="", photos=(), looks=(), method=method, rank=0)


_DTYPES = {"fp32": torch.float32, "fp16": torch.bfloat16, "bf16": torch.bfloat16}
"""Types of weights while rendering; both half precisions take the same."""


_ENCODERS = ("image_encoder", "adapter", "vae")


def encoding(recipe: Recipe, *, precision: str = "fp32", batch_size: int = 1) -> Cost:
    """Latents and tokens of photos or frames: what preprocessing does with each view."""
    return _inference(recipe, _encode, _ENCODERS, precision=precision, batch_size=batch_size)


def subject_encoding(recipe: Recipe) -> Cost:
    """A batch of views, as `finetune_subject` encodes them before its steps, by VAE and CLIP."""
    count = encode_batch_size(recipe.height, recipe.width, at_most=photo_crops.ENCODE_BATCH)
    cost = encoding(recipe, batch_size=count)
    waiting = 4 * (cost.parameters["unet"] + cost.parameters["adapter"])
    return replace(cost, held_bytes=cost.held_bytes - waiting, peak_bytes=cost.peak_bytes - waiting)


def rendering(
    recipe: Recipe,
    *,
    num_calls: int,
    precision: str = "fp32",
    chunk_size: int = 8,
    join_branches: bool = True,
    offload: str = "none",
    slicing: bool = False,
    tiling: bool = False,
) -> Cost:
    """A chunk of frames: the photo, `num_calls` calls of the guided model, the decoding.

    Args:
        recipe: of the model, and its scales.
        num_calls: see `generate.Request`.
        precision: of weights and computing.
        chunk_size: frames at once.
        join_branches: see `guidance.guide`.
        offload: see `DreamPosePipeline.offload`.
        slicing: see `DreamPosePipeline.split_decoding`.
        tiling: likewise.
    """

    def decode(pipe: DreamPosePipeline, count: int) -> Tensor:
        pipe.split_decoding(slicing=slicing, tiling=tiling)
        return codec_of(pipe).decode(latents(recipe, count))

    def call(pipe: DreamPosePipeline, count: int) -> Tensor:
        return _guided_call(pipe, count, join_branches=join_branches)

    # The parts that a phase brings to the device where the others stay behind.
    phases = (
        (_encode, 1, _ENCODERS, 1),
        (call, num_calls, ("unet",), chunk_size),
        (decode, 1, ("vae",), chunk_size),
    )
    flops = peak = with_scratch = 0
    pipe = without_weights(recipe)
    width = _DTYPES[precision].itemsize
    parameters = checkpoints.num_parameters(pipe)
    for work, times, parts, count in phases:
        cost = _inference(recipe, work, parts, precision=precision, batch_size=count)
        flops += times * cost.flops
        working = cost.peak_bytes - cost.held_bytes
        if offload == "none":
            kept = cost.held_bytes
        elif offload == "model":
            kept = max(width * parameters[part] for part in parts)
        else:
            kept = max(_largest_layer(getattr(pipe, part)) for part in parts) * width
        peak = max(peak, kept + working)
        with_scratch = max(with_scratch, kept + working + cost.scratch_bytes)
    return Cost(
        parameters=parameters,
        num_trained=0,
        held_bytes=width * sum(parameters.values()) if offload == "none" else 0,
        peak_bytes=peak,
        scratch_bytes=with_scratch - peak,
        flops=flops,
    )


def guided_call(recipe: Recipe) -> Cost:
    """One call of the guided model on one frame."""
    return _inference(
        recipe,
        lambda pipe, count: _guided_call(pipe, count, join_branches=True),
        ("unet",),
        precision="fp32",
        batch_size=1,
    )


def decoding(recipe: Recipe) -> Cost:
    """Decoding of one frame."""
    return _inference(
        recipe,
        lambda pipe, count: codec_of(pipe).decode(latents(recipe, count)),
        ("vae",),
        precision="fp32",
        batch_size=1,
    )


def _inference(
    recipe: Recipe,
    work: Callable[[DreamPosePipeline, int], Tensor],
    parts: Sequence[str],
    *,
    precision: str,
    batch_size: int,
) -> Cost:
    """Work of some parts without gradients, beside all parts with weights of this type."""
    pipe = without_weights(recipe)
    parameters = checkpoints.num_parameters(pipe)
    for name in parts:
        # Not the module's own `to`: diffusers' warns of parts that are better kept in float32.
        nn.Module.to(getattr(pipe, name), _DTYPES[precision])
    waiting = sum(number for name, number in parameters.items() if name not in parts)

    def build() -> tuple[DreamPosePipeline, Tensor]:
        for name in parts:
            give_memory(getattr(pipe, name))
        return pipe, torch.zeros(waiting, dtype=_DTYPES[precision])

    def run(made: tuple[DreamPosePipeline, Tensor]) -> Tensor:
        with torch.no_grad():
            return work(made[0], batch_size)

    found = measure(build, run)
    return Cost(
        parameters=parameters,
        num_trained=0,
        held_bytes=found.held_bytes,
        peak_bytes=found.peak_bytes,
        scratch_bytes=found.scratch_bytes,
        flops=found.flops,
    )


def _encode(pipe: DreamPosePipeline, count: int) -> Tensor:
    recipe = pipe.recipe
    photos = torch.zeros(count, 3, recipe.height, recipe.width)
    tokens = clip_tokens(pipe.image_encoder, photos, recipe.photo_fit)
    return pipe.adapter(tokens, codec_of(pipe).encode(photos))


def _guided_call(pipe: DreamPosePipeline, count: int, *, join_branches: bool) -> Tensor:
    recipe = pipe.recipe
    batch = batch_of(recipe, count)
    model = guide(
        Denoiser(unet=pipe.unet),
        Conditions(
            tokens=torch.zeros(count, *token_shape(recipe)), poses=batch["poses"].flatten(1, 2)
        ),
        recipe.image_scale,
        recipe.pose_scale,
        join_branches=join_branches,
    )
    return model(latents(recipe, count), torch.zeros(()))


def _largest_layer(module: nn.Module) -> int:
    """Parameters of the layer that has most."""
    return max(
        sum(value.numel() for value in layer.parameters(recurse=False))
        for layer in module.modules()
    )


def training_step(
    stage: str,
    recipe: Recipe,
    *,
    savings: Savings = NO_SAVINGS,
    precision: str = "fp32",
    num_workers: int = 1,
) -> Cost:
    """One batch of a stage, forward and backward, and the optimizer's memory; see `_step`.

    Args:
        stage: 'vae', 'encoder' or 'base'.
        recipe: of the model.
        savings: of memory.
        precision: 'fp32', or 'bf16' for mixed precision.
        num_workers: of several, each keeps a second copy of the gradients to exchange them.
    """
    pipe = without_weights(recipe)
    config = getattr(recipe, f"{stage}_stage")
    size = config.batch_size
    made: nn.Module
    if stage == "vae":
        made = VaeStage(pipe, data=None, validation=None, config=config)
        side = config.crop_size or max(recipe.height, recipe.width)
        height, width = min(side, recipe.height), min(side, recipe.width)
        batch = {"pixels": torch.zeros(size, height, width, 3, dtype=torch.uint8)}
    elif stage == "encoder":
        made = EncoderStage(pipe, data=None, validation=None, recipe=recipe, seed=0)
        photos = torch.zeros(size, 3, recipe.height, recipe.width)
        batch = {"first": photos, "second": photos}
    else:
        made = BaseStage(pipe, data=None, validation=None, recipe=recipe, config=config)
        batch = batch_of(recipe, size)
    return _step(
        pipe,
        made,
        batch,
        savings=savings,
        precision=precision,
        accumulates=config.gradient_accumulation > 1,
        ema=bool(config.ema_decay),
        exchanges=num_workers > 1,
    )


def subject_step(
    recipe: Recipe,
    *,
    method: str = "full",
    rank: int | None = None,
    savings: Savings = NO_SAVINGS,
    precision: str = "fp32",
) -> Cost:
    """One step of finetuning on a person: the first of `finetune_subject`, UNet and adapter."""
    pipe = without_weights(recipe)
    if method == "lora":
        parts = {"unet": pipe.unet, "adapter": pipe.adapter}
        with torch.device("meta"):
            lora.add_lora(parts, rank=rank or recipe.lora_rank, targets=recipe.lora_targets)
    stage = SubjectStage(
        pipe, views_of(recipe), config=recipe.subject_stage, subject=blank_subject(method)
    )
    return _subject_step(pipe, stage, savings=savings, precision=precision)


def subject_decoder_step(
    recipe: Recipe, *, savings: Savings = NO_SAVINGS, precision: str = "fp32"
) -> Cost:
    """One step of finetuning on a person: the second of `finetune_subject`, the decoder."""
    pipe = without_weights(recipe)
    config = recipe.subject_vae_stage
    stage = DecoderStage(pipe, views_of(recipe), config=config, subject=blank_subject("full"))
    return _subject_step(pipe, stage, savings=savings, precision=precision)


def _subject_step(
    pipe: DreamPosePipeline,
    stage: SubjectStage | DecoderStage,
    *,
    savings: Savings,
    precision: str,
) -> Cost:
    config = pipe.recipe.subject_stage
    if isinstance(stage, DecoderStage):
        config = pipe.recipe.subject_vae_stage
    items = np.zeros(config.batch_size, np.int64)
    return _step(
        pipe,
        stage,
        stage.draw("train", items, np.random.default_rng(0)),
        savings=savings,
        precision=precision,
        accumulates=config.gradient_accumulation > 1,
        ema=bool(config.ema_decay),
    )


def _step(
    pipe: DreamPosePipeline,
    stage: nn.Module,
    batch: Mapping[str, Any],
    *,
    savings: Savings,
    precision: str,
    accumulates: bool,
    ema: bool,
    exchanges: bool = False,
) -> Cost:
    """A batch forward and backward, beside what lies on the device in the middle of a run.

    The stage's own modules alone are there, as accelerate moves them.
    """
    prepare(stage, savings)
    trained = [value for value in stage.parameters() if value.requires_grad]
    moments = sum(moment_bytes(value.numel(), savings) for value in trained)
    copies = int(ema and not savings.average_on_cpu) + int(exchanges)
    num_trained = sum(value.numel() for value in trained)

    def build() -> tuple[nn.Module, dict[str, Any], list[Tensor]]:
        # In the middle of a run: moments are there, and gradients where batches are added up.
        kept = [torch.zeros(moments, dtype=torch.uint8), torch.zeros(copies * num_trained)]
        give_memory(stage)
        if accumulates:
            for value in stage.parameters():
                value.grad = torch.zeros_like(value) if value.requires_grad else None
        tensors = {
            key: torch.zeros_like(value) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        return stage, {"seed": 0, **tensors}, kept

    def run(made: tuple[nn.Module, dict[str, Any], list[Tensor]]) -> Tensor:
        model, tensors, _ = made
        model.train()
        with mixed_precision(precision):
            loss = model(tensors)
        loss.backward()
        return loss

    parameters = checkpoints.num_parameters(pipe)
    found = measure(build, run)
    return Cost(
        parameters=parameters,
        num_trained=num_trained,
        held_bytes=found.held_bytes,
        peak_bytes=found.peak_bytes,
        scratch_bytes=found.scratch_bytes,
        flops=found.flops,
        state_bytes=4 * num_trained * (2 if ema else 1) + moments,
    )
