#!/usr/bin/env python
"""Catwalk benchmark v2: prints and backgrounds that no training has seen, at 320x256.

Test people wear prints that the training generator never makes (photographs, words in other
letters) beside those that it does, before varied backgrounds. The photo is the first frame of the
walk; poses are exact. Frames of a walk and of a turn are rendered from one photo and from three
without finetuning.

Scores are means over frames, people weigh the same. `backed` is the part of the body that the
photos show (confidence of the warp at least 0.5), `invented` the rest of the body: there pixels
elsewhere are replaced by the truth before scoring. `gradient energy` is the mean absolute
difference of neighbouring pixels of the body over that of the truth. The contact sheet shows photo,
preview, render and truth.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.data import SPLITS
from dreampose import metrics
from dreampose.diffusion import generation
from dreampose.io.files import new_file
from dreampose.options.loading import load
from dreampose.pipeline import DreamPosePipeline
from dreampose.poses import Motion
from dreampose.poses import parts as body
from dreampose.poses.estimators import to_places
from dreampose.poses.landmarks import NAMES
from dreampose.poses.paint import quantise
from dreampose.synthetic import backgrounds, gait, render, scene, textures
from dreampose.synthetic.generate import MAX_IDENTITIES
from dreampose.synthetic.identity import identity
from dreampose.synthetic.mesh import Surface

HEIGHT, WIDTH, LENGTH = 320, 256, 48
PRINTS = ("stripes", "dots", "plaid", "logo", "words", "photograph")
SCORED = (10, 11, 30, 31)
"""Frames of each clip that are scored: pairs of neighbours."""
METRICS = ("l1", "ssim", "tde", "lpips-lite")
BACKED = 0.5


@dataclass(frozen=True, kw_only=True)
class Take:
    """Frames of one motion with exact poses."""

    frames: UInt8[np.ndarray, "t H W 3"]
    motion: Motion


def picture(kind: str, random: np.random.Generator) -> UInt8[np.ndarray, "s s 3"]:
    """A print that training never makes.

    Args:
        kind: 'words' or 'photograph'.
        random: of colours, words and places.
    """
    side = textures.SIDE
    colours = textures.palette(random, 2)
    result = np.full((side, side, 3), colours[0], np.uint8)
    if kind == "words":
        words = ("Sommer", "Paris", "hello", "dance", "ciao", "coffee")
        for row, top in enumerate(range(30, side, 62)):
            word = words[(row + int(random.integers(6))) % len(words)]
            for left in range(-40, side, 200):
                cv2.putText(
                    result, word, (left + 37 * row % 120, top), cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
                    1.9, colours[1].tolist(), 3, cv2.LINE_AA,
                )  # fmt: skip
        return result
    from skimage import data

    shot = (data.cat, data.rocket, data.astronaut, data.coffee)[int(random.integers(2))]()
    tile = cv2.resize(shot[..., :3], (side // 2, side // 2), interpolation=cv2.INTER_AREA)
    return np.tile(tile, (2, 2, 1))


def film(number: int, kind: str) -> dict[str, Take]:
    """Walk and turn of one test person in one print."""
    random = np.random.default_rng([number, 77])
    person = identity(SPLITS["test"].seed * MAX_IDENTITIES + number, "test")
    known = kind in ("stripes", "dots", "plaid", "logo")
    person = replace(person, pattern=kind if known else "plain")
    dressed = scene.build(person)
    setup = render.prepare(dressed, height=HEIGHT, width=WIDTH)
    if not known:
        texture = textures.lookup(picture(kind, random))
        setup = replace(
            setup, prints={**setup.prints, Surface.TOP: texture, Surface.DRESS: texture}
        )
    if number % 2:
        setup = replace(setup, backdrop=backgrounds.make(random, *setup.backdrop.shape[:2]))
    takes: dict[str, Take] = {}
    for motion in ("walk", "turn"):
        steps = gait.poses(
            person,
            motion=motion,
            num_frames=LENGTH,
            fps=24.0,
            arm_lift=dressed.arm_lift,
            stance=dressed.stance,
        )
        drawn = [render.draw(setup, scene.pose(dressed, step)) for step in steps]
        uv = np.stack([np.moveaxis(one.atlas, -1, 0) for one in drawn])
        maps = body.to_maps(np.stack([one.parts for one in drawn]), uv, 2)
        joints = np.stack([one.joints for one in drawn]) + np.array([0.5, 0.5, 0], np.float32)
        takes[motion] = Take(
            frames=np.stack([one.image for one in drawn]),
            motion=Motion(
                maps=quantise(maps),
                joints=np.concatenate([joints, np.ones_like(joints[..., :1])], -1),
                confidence=np.ones(LENGTH, np.float32),
                fps=24.0,
                estimator="catwalk",
                joint_names=NAMES,
                places=to_places(maps),
            ),
        )
    return takes


def gradient_energy(frames: UInt8[np.ndarray, "n H W 3"], where: np.ndarray) -> float:
    """Mean absolute difference of neighbouring pixels where a mask (n H W) is set."""
    values = frames.astype(np.float32)
    down = np.abs(np.diff(values, axis=1)).mean(-1)[where[:, 1:]]
    across = np.abs(np.diff(values, axis=2)).mean(-1)[where[:, :, 1:]]
    return float(down.mean() + across.mean())


def score_person(
    pipe: DreamPosePipeline, takes: dict[str, Take], networks: metrics.Networks, preset: str
) -> tuple[dict[str, dict[str, float]], UInt8[np.ndarray, "_ _ 3"]]:
    """Scores by row of the table, and the person's rows of the contact sheet."""
    walk, turn = takes["walk"], takes["turn"]
    sources = [(walk, 0), (turn, LENGTH // 4), (turn, LENGTH // 2)]
    chosen = [metrics.METRICS[name] for name in METRICS]
    found: dict[str, dict[str, float]] = {}
    sheet: list[np.ndarray] = []
    for motion, take in takes.items():
        truth = take.frames[list(SCORED)]
        shown: dict[str, np.ndarray] = {}
        for label, count, name in (("preview", 1, "preview"), ("1 photo", 1, preset),
                                   ("3 photos", 3, preset)):  # fmt: skip
            request = generation.prepare(
                pipe,
                [one.frames[at] for one, at in sources[:count]],
                take.motion,
                preset=name,
                align=False,
                photo_poses=[one.motion.between(at, at + 1) for one, at in sources[:count]],
            )
            frames = generation.render_frames(pipe, request, SCORED)
            shown[label] = frames
            assert request.warps is not None
            planes = request.warps[list(SCORED)].numpy()
            person = planes[:, 4] > 0
            backed = person & (planes[:, 3] >= 255 * BACKED)
            row = metrics.pair_scores(chosen, frames, truth, networks)
            for area, mask in (("backed", backed), ("invented", person & ~backed)):
                mixed = np.where(mask[..., None], frames, truth)
                row[f"lpips, {area}"] = metrics.pair_scores(chosen[-1:], mixed, truth, networks)[
                    METRICS[-1]
                ]
            row["gradient energy"] = gradient_energy(frames, person) / gradient_energy(
                truth, person
            )
            row["backed share"] = float(backed.sum() / person.sum())
            found[f"{label}, {motion}"] = row
        k = 0 if motion == "walk" else 2
        cells = [walk.frames[0], *(shown[label][k] for label in shown), truth[k]]
        sheet.append(np.concatenate([cell[8:308, 60:196] for cell in cells], axis=1))
    return found, np.concatenate(sheet, axis=1)


def table(rows: Sequence[dict[str, dict[str, float]]]) -> str:
    """Markdown table of means over people."""
    names = list(rows[0][next(iter(rows[0]))])
    lines = [f"| row | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}"]
    for label in rows[0]:
        means: Float[np.ndarray, " n"] = np.mean(
            [[row[label][name] for name in names] for row in rows], axis=0
        )
        lines.append(f"| {label} | {' | '.join(f'{value:.4f}' for value in means)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Renders, scores and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="models/catwalk")
    parser.add_argument("--out", type=Path, default=Path("out/prints"))
    parser.add_argument("--people", type=int, default=6)
    parser.add_argument("--preset", default="fast")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    pipe = load(args.model)
    networks = metrics.Networks()
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, dict[str, float]]] = []
    sheets: list[np.ndarray] = []
    for number in range(args.people):
        takes = film(number, PRINTS[number % len(PRINTS)])
        scores, sheet = score_person(pipe, takes, networks, args.preset)
        rows.append(scores)
        sheets.append(sheet)
        text = table(rows)
        print(f"{number + 1} of {args.people} people\n{text}", flush=True)
        with new_file(args.out / "report.md") as part:
            part.write_text(f"Catwalk benchmark v2, {number + 1} people.\n\n{text}\n")
        cv2.imwrite(str(args.out / "sheet.png"), np.concatenate(sheets, axis=0)[..., ::-1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
