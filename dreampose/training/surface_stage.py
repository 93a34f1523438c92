"""Training of the surface condition and the refiner, together, resumable."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from dreampose import checkpoints, metrics
from dreampose.config import replace
from dreampose.data.windows import windows
from dreampose.diffusion import losses, schedulers
from dreampose.diffusion.sampling import denoise
from dreampose.diffusion.schedulers import scheduler_by_name
from dreampose.io import video
from dreampose.io.files import new_file
from dreampose.metrics.perceptual import lpips_lite
from dreampose.models.adapter import clip_tokens, pose_condition, surface_condition
from dreampose.models.refiner import Refiner
from dreampose.models.unet import widen
from dreampose.models.vae import LatentCodec
from dreampose.pipeline import DreamPosePipeline
from dreampose.surface import painted
from dreampose.surface.background import background
from dreampose.surface.maps import SurfaceMap
from dreampose.surface.texture import Texture, build
from dreampose.surface.warp import Layer, Warp, warp
from dreampose.training import surface_data

DETAIL = 4
"""Rows and columns of squares of a latent cell in which confidence is given to the UNet."""
PAINTED, NO_WARP, MISPLACED = 0.3, 0.06, 0.05
"""Shares of samples with painted poses, without any warp, and with wrong correspondences."""
DROPPED = 0.05
"""Share of samples without pose, without photo, and without either."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One sample: pictures of one size, 8-bit RGB (H W 3), and what belongs to them."""

    target: np.ndarray
    photo: np.ndarray
    warped: Warp
    window: np.ndarray


class Samples:
    """Draws samples from rendered people."""

    def __init__(self, folder: Path) -> None:
        """Maps the people of a folder."""
        self._folder = folder
        self.people = surface_data.load(folder)
        self._folders = [
            each
            for each in sorted(folder.iterdir())
            if each.is_dir() and (each / "frames.npy").is_file()
        ]
        self._read: dict[int, tuple[np.ndarray, np.ndarray] | None] = {}

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Joints and grids that BlazePose read from a person, where they are there."""
        if index not in self._read:
            folder = self._folders[index]
            if not (folder / "read.npy").is_file():
                return None
            joints = np.load(folder / "read.npy")
            grid = np.load(folder / "read_grid.npy", mmap_mode="r")
            self._read[index] = None if np.isnan(joints).any() else (joints, grid)
        return self._read[index]

    def draw(
        self,
        random: np.random.Generator,
        *,
        scale: int,
        person: int | None = None,
        target: int | None = None,
        refs: Sequence[int] | None = None,
        is_painted: bool | None = None,
        augment: bool = True,
    ) -> Drawn:
        """One sample.

        Args:
            random: of all choices that are not given.
            scale: 1 for full size, 2 for half.
            person: index of the person.
            target: frame to be rendered.
            refs: frames that are photos, the first the main one.
            is_painted: whether poses are those that BlazePose reads.
            augment: exchange colour channels and spoil correspondences now and then.
        """
        index = int(random.integers(len(self.people))) if person is None else person
        one = self.people[index]
        count = len(one.frames)
        if target is None:
            target = int(random.integers(count))
        if refs is None:
            refs = _references(one, target, random)
        if is_painted is None:
            is_painted = bool(random.random() < PAINTED)
        read = self.read(index) if is_painted else None
        order = np.arange(3)
        if augment and random.random() < 0.4:
            order = random.permutation(3)

        def picture(k: int) -> np.ndarray:
            frame = np.asarray(one.frames[k])[..., order]
            if scale == 1:
                return np.ascontiguousarray(frame)
            size = (frame.shape[1] // scale, frame.shape[0] // scale)
            return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)

        def mask(k: int) -> np.ndarray:
            return np.ascontiguousarray(one.parts[k][scale // 2 :: scale, scale // 2 :: scale] > 0)

        def surface(k: int) -> SurfaceMap:
            if read is not None:
                height, width = (side // scale for side in one.frames.shape[1:3])
                near = np.clip(np.arange(k - 2, k + 3), 0, count - 1)
                near = near[one.clip[near] == one.clip[k]]
                joints = read[0][near] / np.array([scale, scale, scale, 1], np.float32)
                size = painted.body_sizes(joints)[near == k]
                return painted.paint(joints[near == k][0], float(size[0]), height, width)
            uv = one.uv[k][scale // 2 :: scale, scale // 2 :: scale].astype(np.float32) / 65535
            return SurfaceMap(charts=mask(k).astype(np.uint8), uv=uv, kind="atlas")

        textures: list[Texture] = []
        layer: Layer | None = None
        for ref in refs:
            photo, shown = picture(ref), mask(ref)
            if read is not None and augment:
                # A segmentation is off by a pixel here and there.
                kernel = np.ones((3, 3), np.uint8)
                grow = cv2.dilate if random.random() < 0.5 else cv2.erode
                shown = grow(shown.astype(np.uint8), kernel) > 0
            if layer is None:
                layer = background(photo, shown)
            textures.append(build(photo, surface(ref), None if read is None else shown))
        assert layer is not None
        aim = surface(target)
        if augment and random.random() < MISPLACED:
            aim = _misplace(aim, random)
        own = np.flatnonzero(one.clip == one.clip[target])
        window = own[windows(len(own), 5)[target - own[0]]]
        grid = one.grid if read is None else read[1]
        return Drawn(
            target=picture(target),
            photo=picture(refs[0]),
            warped=warp(textures, aim, layer),
            window=np.asarray(grid[window]),
        )


def _references(one: surface_data.Person, target: int, random: np.random.Generator) -> list[int]:
    count = len(one.frames)
    num = int(random.choice([1, 1, 1, 1, 1, 1, 2, 3, 3, 3]))
    refs: list[int] = []
    while len(refs) < num:
        first = not refs and random.random() < 0.6
        pool = np.flatnonzero(one.clip == 0) if first else np.arange(count)
        ref = int(pool[random.integers(len(pool))]) if len(pool) else 0
        # The photo is never the very frame, nor its neighbour.
        if abs(ref - target) > 1:
            refs.append(ref)
    return refs


def _misplace(surface: SurfaceMap, random: np.random.Generator) -> SurfaceMap:
    height, width = surface.charts.shape
    field = random.normal(0, 1, (4, 3, 2)).astype(np.float32)
    field = cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
    uv = np.clip(surface.uv + field * float(random.uniform(0.005, 0.04)), 0, 1)
    return SurfaceMap(charts=surface.charts, uv=uv.astype(np.float32), kind=surface.kind)


def _tensor(pictures: Sequence[np.ndarray]) -> Float[Tensor, "b 3 H W"]:
    return video.to_model(np.stack(pictures))


def _planes(values: Sequence[np.ndarray]) -> Float[Tensor, "b 1 H W"]:
    return torch.from_numpy(np.stack(values).astype(np.float32))[:, None]


def _halve(images: Float[Tensor, "b c H W"], scale: int) -> Float[Tensor, "b c h w"]:
    """From the size of samples to that of the model's frames."""
    return images if scale == 2 else functional.avg_pool2d(images, 2)


def _crop(random: np.random.Generator, body: np.ndarray, side: int) -> tuple[slice, slice]:
    """A square about a random pixel of the body."""
    rows, columns = np.nonzero(body)
    k = int(random.integers(len(rows))) if len(rows) else 0
    height, width = body.shape
    y, x = (int(rows[k]), int(columns[k])) if len(rows) else (height // 2, width // 2)
    y += int(random.integers(-side // 4, side // 4 + 1)) - side // 2
    x += int(random.integers(-side // 4, side // 4 + 1)) - side // 2
    y, x = (int(np.clip(v, 0, limit - side)) // 4 * 4 for v, limit in ((y, height), (x, width)))
    return slice(y, y + side), slice(x, x + side)


class Trainer:
    """UNet, adapter and refiner with optimizers and moving averages."""

    def __init__(
        self,
        pipe: DreamPosePipeline,
        *,
        rate: float,
        refiner_rate: float,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Trains a pipeline in place; one without a surface condition is widened by it.

        Args:
            pipe: with the weights to start from.
            rate: learning rate of UNet and adapter.
            refiner_rate: learning rate of the refiner.
            device: that computes.
            dtype: of activations; weights and moments are float32.
        """
        self.pipe, self.recipe = pipe, pipe.recipe
        self.device, self.dtype = torch.device(device), dtype
        if not self.recipe.surface_detail:
            widen(pipe.unet, self.recipe.latent_channels + DETAIL**2)
        assert self.recipe.surface_detail in (0, DETAIL)
        pipe.to(self.device)
        pipe.unet.requires_grad_(True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        pipe.adapter.requires_grad_(True)
        pipe.image_encoder.requires_grad_(False)
        pipe.vae.requires_grad_(False)
        refiner = Refiner() if pipe.refiner is None else pipe.refiner.requires_grad_(True)
        self.refiner = refiner.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.codec = LatentCodec(vae=pipe.vae, image_range=self.recipe.image_range)
        entry = list(pipe.unet.conv_in.parameters())
        names = {id(p) for p in entry}
        rest = [p for p in pipe.unet.parameters() if id(p) not in names]
        rest += list(pipe.adapter.parameters())
        self.rates = (rate, 2.5 * rate, refiner_rate)
        self.optimizer = torch.optim.AdamW([{"params": rest}, {"params": entry}], weight_decay=0.01)
        self.refiner_optimizer = torch.optim.AdamW(self.refiner.parameters(), weight_decay=1e-4)
        self.modules = {"unet": pipe.unet, "adapter": pipe.adapter, "refiner": self.refiner}
        self.average = {
            f"{name}.{key}": value.detach().clone()
            for name, module in self.modules.items()
            for key, value in module.state_dict().items()
        }
        self.step = 0
        self.seconds = 0.0
        self.network = metrics.Networks().get(metrics.METRICS["lpips-lite"]).to(self.device)

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "refiner_optimizer": self.refiner_optimizer.state_dict(),
            **{name: module.state_dict() for name, module in self.modules.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes a state of `state`."""
        self.step, self.seconds, self.average = state["step"], state["seconds"], state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.refiner_optimizer.load_state_dict(state["refiner_optimizer"])
        for name, module in self.modules.items():
            module.load_state_dict(state[name])

    def set_rates(self, share: float) -> None:
        """Learning rates of a step: linear warm-up times a cosine of the share that is done."""
        warm = min(1.0, (self.step + 1) / 40)
        factor = warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))
        groups = [*self.optimizer.param_groups, *self.refiner_optimizer.param_groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def update_average(self) -> None:
        """Moving average of the weights; short at first."""
        decay = min(0.995, (1 + self.step) / (10 + self.step))
        for name, module in self.modules.items():
            for key, value in module.state_dict().items():
                held = self.average[f"{name}.{key}"]
                if held.dtype.is_floating_point:
                    held.lerp_(value.detach(), 1 - decay)
                else:
                    held.copy_(value)

    def train(
        self, samples: Sequence[Drawn], scale: int, random: np.random.Generator
    ) -> dict[str, float]:
        """One step on a batch of samples of one size.

        Returns:
            The losses.
        """
        with torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32
        ):
            return self._train(samples, scale, random)

    def _train(
        self, samples: Sequence[Drawn], scale: int, random: np.random.Generator
    ) -> dict[str, float]:
        recipe, codec, pipe, device = self.recipe, self.codec, self.pipe, self.device
        count = len(samples)
        target = _tensor([s.target for s in samples]).to(device)
        photo = _tensor([s.photo for s in samples]).to(device)
        warped = _tensor([s.warped.picture for s in samples]).to(device)
        confidence = _planes([s.warped.confidence for s in samples]).to(device)
        body = _planes([s.warped.body for s in samples]).to(device)
        blank = torch.from_numpy(random.random(count) < NO_WARP)[:, None, None, None].to(device)
        warped, confidence = warped.masked_fill(blank, 0), confidence.masked_fill(blank, 0)
        with torch.no_grad():
            latents = codec.encode(_halve(target, scale))
            small = _halve(photo, scale)
            tokens = clip_tokens(pipe.image_encoder, small, fit=recipe.photo_fit)
            condition = surface_condition(
                codec, _halve(warped, scale), _halve(confidence, scale), DETAIL
            )
            condition = condition.masked_fill(blank, 0)
            photo_latents = codec.encode(small)
            poses = torch.from_numpy(np.stack([s.window for s in samples]).astype(np.float32))
            poses = pose_condition(poses.to(device), recipe.pose_range)
        drawn = torch.from_numpy(random.random(count)).to(device)
        no_pose = (drawn < DROPPED) | ((drawn >= 2 * DROPPED) & (drawn < 3 * DROPPED))
        no_photo = (drawn >= DROPPED) & (drawn < 3 * DROPPED)
        conditions = pipe.adapter(tokens, photo_latents)
        conditions = conditions.masked_fill(no_photo[:, None, None], 0)
        poses = poses.masked_fill(no_pose[:, None, None, None], 0)
        condition = condition.masked_fill((no_pose | no_photo)[:, None, None, None], 0)
        steps = torch.from_numpy(random.integers(1000, size=count)).to(device)
        noise = torch.from_numpy(random.standard_normal(latents.shape).astype(np.float32))
        noise = noise.to(device)
        noisy = pipe.scheduler.add_noise(latents, noise, steps)
        wanted = schedulers.training_target(pipe.scheduler, latents, noise, steps)
        inputs = torch.cat([noisy, poses, condition], dim=1)
        predicted = pipe.unet(inputs, steps, encoder_hidden_states=conditions).sample
        loss = losses.denoising_loss(predicted, wanted)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()

        with torch.no_grad():
            guessed = self._guess(noisy, predicted.detach(), steps)
            shown = self._decoded(
                guessed, steps, latents, no_pose | no_photo, (poses, condition, conditions), random
            )
            if scale == 1:
                shown = functional.interpolate(
                    shown, scale_factor=2.0, mode="bilinear", align_corners=False
                )
            bare = torch.from_numpy(random.random(count) < 0.2)[:, None, None, None].to(device)
            bare &= ~blank
            shown = torch.where(bare, warped, shown.clamp(-1, 1))
        side = 96 if scale == 2 else 128
        parts: list[list[Tensor]] = []
        for k, sample in enumerate(samples):
            rows, columns = _crop(random, sample.warped.body, side)
            parts.append(
                [v[k, :, rows, columns] for v in (shown, warped, confidence, body, target)]
            )
        crops = [
            torch.stack(v).contiguous(memory_format=torch.channels_last)
            for v in zip(*parts, strict=True)
        ]
        refined = self.refiner(*crops[:4])
        pixels = losses.reconstruction_loss(refined, crops[4], edge_weight=0.5)
        perceived = lpips_lite(self.network, (refined + 1) / 2, (crops[4] + 1) / 2).mean()
        total = pixels + 0.2 * perceived
        self.refiner_optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.refiner.parameters(), 1.0)
        self.refiner_optimizer.step()
        self.step += 1
        self.update_average()
        return {
            "denoising": loss.item(),
            "pixels": pixels.item(),
            "lpips": perceived.item(),
        }

    def _guess(self, noisy: Tensor, predicted: Tensor, steps: Tensor) -> Tensor:
        """Latents without noise, as the denoiser's prediction implies them."""
        alpha = self.pipe.scheduler.alphas_cumprod.to(self.device)[steps][:, None, None, None]
        if self.pipe.scheduler.config["prediction_type"] == "v_prediction":
            return alpha.sqrt() * noisy - (1 - alpha).sqrt() * predicted
        return (noisy - (1 - alpha).sqrt() * predicted) / alpha.sqrt()

    def _decoded(
        self,
        guessed: Tensor,
        steps: Tensor,
        latents: Tensor,
        dropped: Tensor,
        conditions: tuple[Tensor, Tensor, Tensor],
        random: np.random.Generator,
    ) -> Tensor:
        """What the decoder makes of the denoiser's own latents.

        A guess from much noise is what the denoiser knows without the truth; where the step drew
        less noise, latents are sampled in a few steps, since a guess from little noise holds the
        truth, which there is not when frames are rendered. Dropped conditions, which renders do not
        have, give way to spoilt true latents.

        Args:
            guessed: of `_guess`.
            steps: timesteps of the guesses.
            latents: the true ones.
            dropped: samples without pose or photo.
            conditions: poses, surface condition and tokens.
            random: of what is spoilt and of the noise.
        """
        noise = torch.from_numpy(random.standard_normal(latents.shape).astype(np.float32))
        spoilt = latents + 0.15 * float(random.random()) * noise.to(self.device)
        chosen = torch.where(dropped[:, None, None, None], spoilt, guessed)
        low = torch.nonzero((steps < 600) & ~dropped).flatten()
        if len(low):
            poses, surface, tokens = (values.detach()[low] for values in conditions)
            chosen[low] = self._sample(poses, surface, tokens, random).to(chosen)
        return self.codec.decode(chosen)

    def _sample(
        self, poses: Tensor, surface: Tensor, tokens: Tensor, random: np.random.Generator
    ) -> Tensor:
        """Latents by a few steps of one branch."""
        scheduler = scheduler_by_name(
            "DPMSolverMultistepScheduler",
            self.pipe.scheduler.config,
            timestep_spacing="trailing",
        )
        shape = (len(poses), self.recipe.latent_channels, *self.recipe.latent_size)
        latents = torch.from_numpy(random.standard_normal(shape).astype(np.float32))
        latents = latents.to(self.device)

        def model(x: Tensor, t: Tensor) -> Tensor:
            inputs = torch.cat([x, poses, surface], dim=1)
            return self.pipe.unet(inputs, t, encoder_hidden_states=tokens).sample

        for each in denoise(model, latents, scheduler, int(random.integers(3, 7))):
            latents = each.latents
        return latents

    @torch.no_grad()
    def render(
        self, samples: Sequence[Drawn], scale: int, *, num_steps: int = 8, preset: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Frames in [-1, 1] by eight steps of one branch: before the refiner and after it."""
        pipe, codec = self.pipe, self.codec
        device = self.device
        photo = _halve(_tensor([s.photo for s in samples]).to(device), scale)
        warped = _tensor([s.warped.picture for s in samples]).to(device)
        confidence = _planes([s.warped.confidence for s in samples]).to(device)
        body = _planes([s.warped.body for s in samples]).to(device)
        tokens = pipe.adapter(
            clip_tokens(pipe.image_encoder, photo, fit=self.recipe.photo_fit), codec.encode(photo)
        )
        condition = surface_condition(
            codec, _halve(warped, scale), _halve(confidence, scale), DETAIL
        )
        poses = torch.from_numpy(np.stack([s.window for s in samples]).astype(np.float32))
        poses = pose_condition(poses.to(device), self.recipe.pose_range)
        scheduler = scheduler_by_name(
            "DPMSolverMultistepScheduler", pipe.scheduler.config, timestep_spacing="trailing"
        )
        size = self.recipe.latent_size
        noise = torch.randn(
            1, self.recipe.latent_channels, *size, generator=torch.Generator().manual_seed(0)
        ).to(device)

        def model(x: Tensor, t: Tensor) -> Tensor:
            inputs = torch.cat([x, poses, condition], dim=1)
            return pipe.unet(inputs, t, encoder_hidden_states=tokens).sample

        latents = noise.expand(len(samples), -1, -1, -1)
        if preset:
            for each in denoise(model, latents, scheduler, num_steps):
                latents = each.latents
            decoded = codec.decode(latents).clamp(-1, 1)
            if scale == 1:
                decoded = functional.interpolate(
                    decoded, scale_factor=2.0, mode="bilinear", align_corners=False
                )
        else:
            decoded = warped
        return decoded, self.refiner(decoded, warped, confidence, body)

    def averaged(self) -> "Iterator[None]":
        """Swaps the averages in, and back when it is resumed."""
        kept = {
            name: {k: v.clone() for k, v in m.state_dict().items()}
            for name, m in self.modules.items()
        }
        for name, module in self.modules.items():
            own = {k: self.average[f"{name}.{k}"] for k in module.state_dict()}
            module.load_state_dict(own)
            module.eval()
        yield
        for name, module in self.modules.items():
            module.load_state_dict(kept[name])
            module.train()


def validate(trainer: Trainer, samples: Samples, *, people: int = 6) -> str:
    """Scores of held-out people with the averaged weights, as one line for each kind of frame."""
    lines: list[str] = []
    swap = trainer.averaged()
    next(swap)
    chosen = [metrics.METRICS[name] for name in ("l1", "ssim", "lpips-lite")]
    random = np.random.default_rng(0)
    for name, motion, refs, kind, bare in (
        ("walk 1", 0, [2], False, False),
        ("turn 1", 1, [2], False, False),
        ("turn 3", 1, [2, 14, 31], False, False),
        ("walk read", 0, [2], True, False),
        ("walk preview", 0, [2], False, True),
    ):
        rows: list[list[float]] = []
        for index in range(min(people, len(samples.people))):
            one = samples.people[index]
            own = np.flatnonzero(one.clip == motion)
            frames = own[[4, 5, -5, -4]]
            drawn = [
                samples.draw(
                    random, scale=2, person=index, target=int(frame), refs=refs, is_painted=kind,
                    augment=False,
                )
                for frame in frames
            ]  # fmt: skip
            before, after = trainer.render(drawn, 2, preset=not bare)
            truth = np.stack([s.target for s in drawn])
            row: list[float] = []
            for images in (before, after):
                scores = metrics.pair_scores(
                    chosen, video.to_pixels(images), truth, metrics.Networks()
                )
                row += [scores[m.name] for m in chosen]
            rows.append(row)
        l1, ssim, lite, l1_after, ssim_after, lite_after = np.mean(rows, axis=0)
        lines.append(
            f"{name:13s} decoded L1 {l1:.4f} SSIM {ssim:.4f} lite {lite:.4f} | "
            f"refined L1 {l1_after:.4f} SSIM {ssim_after:.4f} lite {lite_after:.4f}"
        )
    next(swap, None)
    return "\n".join(lines)


def run(
    trainer: Trainer,
    data: Path,
    validation: Path,
    out: Path,
    *,
    minutes: float,
    batch_size: int = 16,
    checkpoint_every: int = 100,
    seed: int = 0,
) -> Iterator[str]:
    """Trains until the minutes are over, or goes on from the checkpoint in `out`.

    Args:
        trainer: what is trained.
        data: folder of people, see `surface_data`; it may grow meanwhile.
        validation: the same of held-out people.
        out: where `last.pt` is written.
        minutes: of the whole schedule, checkpoints and validation not counted.
        batch_size: samples of a step.
        checkpoint_every: steps between checkpoints, each followed by a validation.
        seed: of all draws.

    Yields:
        A line every 20 steps, and the validation's lines.
    """
    out.mkdir(parents=True, exist_ok=True)
    last = out / "last.pt"
    if last.is_file():
        trainer.load(torch.load(last, weights_only=True))
    training, held_out = Samples(data), Samples(validation)
    for module in trainer.modules.values():
        module.train()
    history: list[dict[str, float]] = []
    while trainer.seconds < 60 * minutes:
        start = time.monotonic()
        random = np.random.default_rng([seed, trainer.step])
        # Full and half size take turns.
        scale = 2 if trainer.step % 2 else 1
        samples = [training.draw(random, scale=scale) for _ in range(batch_size)]
        trainer.set_rates(trainer.seconds / 60 / minutes)
        history.append(trainer.train(samples, scale, random))
        trainer.seconds += time.monotonic() - start
        if trainer.step % 20 == 0:
            mean = {key: float(np.mean([h[key] for h in history[-60:]])) for key in history[-1]}
            text = " ".join(f"{key} {value:.4f}" for key, value in mean.items())
            yield f"{trainer.step} {text} | {trainer.seconds / 60:.1f} min"
        if trainer.step % checkpoint_every == 0 or trainer.seconds >= 60 * minutes:
            with new_file(last) as part:
                torch.save(trainer.state(), part)
            yield validate(trainer, held_out)
            # People rendered or read since then take part too.
            training = Samples(data)


@torch.no_grad()
def finished(trainer: Trainer, source: DreamPosePipeline, *, upscale: int = 2) -> DreamPosePipeline:
    """A pipeline with a trainer's averaged weights.

    Args:
        trainer: of a copy of `source`.
        source: the pipeline that was trained on, which gives encoder, VAE and recipe.
        upscale: see `Recipe.upscale`.
    """
    recipe = replace(
        source.recipe,
        surface_detail=DETAIL,
        refiner={"width": 32, "deep_width": 48, "num_blocks": 1},
        upscale=upscale,
        image_scale=1.0,
        pose_scale=1.0,
    )
    pipe = checkpoints.build(recipe)
    pipe.register_modules(vae=source.vae, image_encoder=source.image_encoder)
    for name in trainer.modules:
        module = getattr(pipe, name)
        keys = module.state_dict()
        module.load_state_dict({key: trainer.average[f"{name}.{key}"] for key in keys})
    return pipe
