"""How close renders of people never seen in training come to the truth, beside copying the photo.

One command makes test identities, renders each of them with the base model and with the model
finetuned on them, and prints the table. Knows nothing of Ray.

Protocol, the same for every row:
- People are of the test split, which shares no person, pattern or colour pair with training. Each
  has two clips: a walk and a turn. Nothing is tuned on them.
- The photo is the first frame of the walk. Motions are read from the clips by the pose estimator,
  as from any video, and are not aligned: they already are the photo's body.
- Finetuning sees the photo, and the turn at a quarter and a half of its length (side and back), as
  photos without motion; none of these three is scored.
- Scored is each `--every`-th frame of both clips, at the model's size: mean absolute difference to
  the true frame, pixels in [0, 1], over all pixels; clips and people weigh the same.
- `copy` repeats the photo; `VAE` encodes and decodes the true frame (about the best such a model
  can do); `base` is the model as it is; `finetuned` has learned the person, its decoder included,
  so that it may pass the base model's VAE.
"""

import argparse
import csv
import json
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from tqdm import tqdm

from dreampose import catwalk, dataset, generate, poses, subjects, training, video
from dreampose.cli import door, flags
from dreampose.cli.model import load
from dreampose.errors import InputError
from dreampose.latents import LatentCodec
from dreampose.pipeline import DreamPosePipeline

METHODS = ("copy", "VAE", "base", "finetuned")
TARGETS = {"base": 0.70, "finetuned": 0.55}
"""Largest ratio to `copy` that counts as passed."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What a result depends on; results of another protocol are not reused."""

    model: str
    fingerprint: str
    preset: str
    estimator: str
    num_frames: int
    every: int
    seed: int
    num_steps: int | None
    num_vae_steps: int | None
    num_photos: int


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and prints its table."""
    parser = door.Parser(
        prog="benchmarks/copy_photo.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_model(parser)
    parser.add_argument(
        "--identities", type=flags.positive, default=8, help="people (default: %(default)s)"
    )
    flags.add_preset(parser, default="balanced")
    parser.add_argument("--frames", type=int, default=32, help="frames of a walk")
    parser.add_argument("--every", type=flags.positive, default=4, help="score each N-th frame")
    parser.add_argument("--seed", type=int, default=3, help="of the test identities")
    flags.add_estimator(parser)
    parser.add_argument("--num-steps", type=int, help="instead of the recipe's, UNet + adapter")
    parser.add_argument("--num-vae-steps", type=int, help="instead of the recipe's, VAE decoder")
    parser.add_argument("--photos", type=int, default=3, choices=(1, 2, 3), help="to finetune on")
    parser.add_argument(
        "--workers", type=flags.positive, default=2, help="people at a time, a core each"
    )
    parser.add_argument("--clips", type=Path, help="test clips that exist, with their manifest.csv")
    parser.add_argument("--out", type=Path, default=Path("out/benchmark"))
    args = parser.parse_args(argv)
    return door.attend(parser.prog, lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Makes the clips, scores every identity that has no result yet, prints and draws."""
    if args.frames <= args.every:
        raise InputError(f"frames must be more than every, got {args.frames} and {args.every}")
    pipe = load(args.model)
    protocol = Protocol(
        model=str(args.model),
        fingerprint=subjects.fingerprint(pipe),
        preset=args.preset,
        estimator=args.estimator,
        num_frames=args.frames,
        every=args.every,
        seed=args.seed,
        num_steps=args.num_steps,
        num_vae_steps=args.num_vae_steps,
        num_photos=args.photos,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    clips = make_clips(args, protocol, pipe.recipe.height, pipe.recipe.width)
    people = sorted(clips)[: args.identities]
    jobs = [
        (args.out / name, clips[name], protocol)
        for name in people
        if not is_done(args.out / name, protocol)
    ]
    run_jobs(jobs, args.workers)
    report(args.out, people, protocol)


def make_clips(
    args: argparse.Namespace, protocol: Protocol, height: int, width: int
) -> dict[str, dict[str, Path]]:
    """Walk and turn of every test identity, by subject; those that are there are kept."""
    out: Path
    if args.clips is not None:
        out = args.clips
    else:
        out = args.out / f"clips-seed{protocol.seed}-{protocol.num_frames}x{height}x{width}"
        progress = catwalk.generate(
            out,
            identities=args.identities,
            frames=protocol.num_frames,
            split="test",
            seed=protocol.seed,
            height=height,
            width=width,
            workers=args.workers,
        )
        with tqdm(total=2 * args.identities, desc="clips", unit="clip") as bar:
            for done, _ in progress:
                bar.update(done - bar.n)
    manifest = out / "manifest.csv"
    if not manifest.is_file():
        raise InputError(f"clips must be a folder with a manifest.csv, got {str(out)!r}")
    clips: dict[str, dict[str, Path]] = {}
    with manifest.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] != "test":
                raise InputError(f"clips must be of the test split, got {row['split']!r}")
            clips.setdefault(row["subject"], {})[row["motion"]] = out / row["path"]
    if len(clips) < args.identities:
        raise InputError(f"clips must show {args.identities} identities, got {len(clips)}")
    return clips


def is_done(folder: Path, protocol: Protocol) -> bool:
    """Whether an identity has a result of this very protocol."""
    result = folder / "result.json"
    return result.is_file() and json.loads(result.read_text())["protocol"] == asdict(protocol)


def run_jobs(jobs: list[tuple[Path, dict[str, Path], Protocol]], workers: int) -> None:
    """Scores identities, `workers` at a time."""
    if not jobs:
        return
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        tqdm(total=len(jobs), desc="identities", unit="person") as bar,
    ):
        for future in as_completed([pool.submit(score, *job) for job in jobs]):
            future.result()
            bar.update()


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip of a person: its motion as the estimator reads it, and the frames to score."""

    motion: poses.Motion
    indices: list[int]
    truth: UInt8[np.ndarray, "n H W 3"]


def score(folder: Path, clips: dict[str, Path], protocol: Protocol) -> None:
    """Renders one person in every way and writes `result.json` last, so that it means done."""
    torch.set_num_threads(1)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pipe = load(protocol.model)
    recipe = pipe.recipe
    walk, turn = video.read(clips["walk"]), video.read(clips["turn"])
    photo = walk.frames[0]
    views = [photo_index(len(turn.frames), share, protocol.every) for share in (0.25, 0.5)]
    photos = [photo, *(turn.frames[view] for view in views)][: protocol.num_photos]
    scenes: dict[str, Scene] = {}
    for name, clip in (("walk", walk), ("turn", turn)):
        height, width = dataset.working_size(clip, recipe)
        estimator = poses.estimator(protocol.estimator)
        motion = poses.extract(clip, estimator, height=height, width=width)
        indices = list(range(protocol.every, len(clip.frames), protocol.every))
        truth = video.fit(clip.frames, recipe.height, recipe.width)[indices]
        scenes[name] = Scene(motion=motion, indices=indices, truth=truth)

    small = video.fit(photo[None], recipe.height, recipe.width)
    codec = LatentCodec(vae=pipe.vae, image_range=pipe.recipe.image_range)
    pictures = {name: {} for name in scenes}
    for name, scene in scenes.items():
        pictures[name]["copy"] = np.repeat(small, len(scene.indices), axis=0)
        pictures[name]["VAE"] = reconstruct(codec, scene.truth)
        pictures[name]["base"] = render(pipe, photo, scene, protocol)
    for _ in training.finetune_subject(
        pipe,
        photos,
        folder / "subject",
        name=folder.name,
        accelerator=Accelerator(cpu=True),
        num_steps=protocol.num_steps,
        num_vae_steps=protocol.num_vae_steps,
    ):
        pass
    pipe.load_subject(folder / "subject")
    for name, scene in scenes.items():
        pictures[name]["finetuned"] = render(pipe, photo, scene, protocol)

    for name, scene in scenes.items():
        np.savez_compressed(
            folder / f"{name}.npz",
            photo=small[0],
            truth=scene.truth,
            maps=scene.motion.maps[scene.indices],
            **pictures[name],
        )
    scores = {
        name: {method: l1(pictures[name][method], scene.truth) for method in METHODS}
        for name, scene in scenes.items()
    }
    part = folder / "result.part"
    part.write_text(json.dumps({"protocol": asdict(protocol), "l1": scores}, indent=1))
    part.replace(folder / "result.json")


def photo_index(num_frames: int, share: float, every: int) -> int:
    """A frame at about this share of a clip that is not scored, if any is not."""
    index = int(share * num_frames)
    return index + 1 if every > 1 and index % every == 0 else index


def render(
    pipe: DreamPosePipeline, photo: UInt8[np.ndarray, "H W 3"], scene: Scene, protocol: Protocol
) -> UInt8[np.ndarray, "n h w 3"]:
    """The scored frames of one clip, by the same code as any video."""
    request = generate.prepare(
        pipe, [photo], scene.motion, preset=protocol.preset, seed=0, align=False
    )
    return generate.render_frames(pipe, request, scene.indices)


@torch.no_grad()
def reconstruct(codec: LatentCodec, frames: UInt8[np.ndarray, "t H W 3"]) -> np.ndarray:
    """Frames through the VAE and back."""
    return np.concatenate(
        [
            video.to_pixels(codec.decode(codec.encode(video.to_model(frames[i : i + 1]))))
            for i in range(len(frames))
        ]
    )


def l1(a: UInt8[np.ndarray, "t H W 3"], b: UInt8[np.ndarray, "t H W 3"]) -> float:
    """Mean absolute difference of pixels in [0, 1]."""
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).mean() / 255)


def report(out: Path, people: Sequence[str], protocol: Protocol) -> None:
    """Prints the table and writes it beside the contact sheet."""
    scores = [json.loads((out / name / "result.json").read_text())["l1"] for name in people]

    def mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
        return {method: float(np.mean([row[method] for row in rows])) for method in METHODS}

    rows = {name: mean(list(l1s.values())) for name, l1s in zip(people, scores, strict=True)}
    for motion in scores[0]:
        rows[f"all, {motion}"] = mean([l1s[motion] for l1s in scores])
    together = mean([rows[name] for name in people])
    rows["all"] = together
    lines = [
        f"{protocol.model} ({protocol.fingerprint}), preset {protocol.preset}, "
        f"{protocol.estimator} poses, {len(people)} people of the test split, "
        f"finetuned on {protocol.num_photos} photos",
        "mean L1 to the truth, pixels in [0, 1]; in brackets the ratio to copying the photo",
        "",
        f"{'person':<20}" + "".join(f"{method:>18}" for method in METHODS),
    ]
    for name, row in rows.items():
        cells = [f"{row[method]:.4f} ({row[method] / row['copy']:.2f})" for method in METHODS]
        lines.append(f"{name:<20}" + "".join(f"{cell:>18}" for cell in cells))
    lines.append("")
    for method, target in TARGETS.items():
        ratio = together[method] / together["copy"]
        verdict = "met" if ratio <= target else "NOT met"
        lines.append(f"{method}: {ratio:.3f} of copying, wanted at most {target:.2f}: {verdict}")
    text = "\n".join(lines)
    print(text)
    (out / "table.txt").write_text(text + "\n")
    sheet = out / "sheet.png"
    draw_sheet(
        [[dict(np.load(out / name / f"{motion}.npz")) for motion in scores[0]] for name in people]
    ).save(sheet)
    print(f"pictures: {sheet}")


def draw_sheet(people: Sequence[Sequence[dict[str, np.ndarray]]]) -> Image.Image:
    """A row a person: the photo, then pose, base, finetuned and truth in the midst of each clip."""
    titles = ["photo", *["pose", "base", "finetuned", "truth"] * len(people[0])]
    rows: list[np.ndarray] = []
    for clips in people:
        cells = [clips[0]["photo"]]
        for clip in clips:
            middle = len(clip["truth"]) // 2
            pose = Image.fromarray(colour(clip["maps"][middle]))
            size = (clip["photo"].shape[1], clip["photo"].shape[0])
            cells.append(np.asarray(pose.resize(size, Image.Resampling.NEAREST)))
            cells += [clip[name][middle] for name in ("base", "finetuned", "truth")]
        rows.append(np.concatenate(cells, axis=1))
    picture = np.concatenate(rows, axis=0)
    header = 14
    sheet = Image.new("RGB", (picture.shape[1], picture.shape[0] + header), "white")
    sheet.paste(Image.fromarray(picture), (0, header))
    draw = ImageDraw.Draw(sheet)
    for number, title in enumerate(titles):
        draw.text((number * picture.shape[1] // len(titles) + 4, 1), title, fill="black")
    return sheet


def colour(maps: Float[np.ndarray, "2 H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """U and V as red and green, the body's silhouette as blue."""
    inside = (maps > 0).any(axis=0)
    return (np.stack([maps[0], maps[1], 0.6 * inside], axis=-1) * 255).astype(np.uint8)


if __name__ == "__main__":
    sys.exit(main())
