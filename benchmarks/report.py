"""Tables and pictures of the benchmark."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from benchmarks.people import METRICS, POSE_FRAMES, SCORED, Protocol, kept
from dreampose import metrics
from dreampose.io import video

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Scores of one person by motion, method and metric."""
ROWS = {
    "copy": "the photo, copied",
    "nearest": "nearest training frame",
    "VAE": "VAE of the truth",
    "read": "base, poses by BlazePose",
    "preview": "preview: warped photo and refiner, no diffusion",
    "base": "base",
    "photos": "base, three photos",
    "finetuned": "finetuned",
}
SHEET_PEOPLE = 6


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A value and its target."""

    text: str
    value: float
    wanted: float
    at_least: bool = False

    def line(self) -> str:
        """Markdown list item with the value, the target and whether it is met."""
        met = self.value >= self.wanted if self.at_least else self.value <= self.wanted
        bound = "at least" if self.at_least else "at most"
        verdict = "met" if met else "NOT met"
        return f"- {self.text}: {self.value:.3f}, wanted {bound} {self.wanted:g}: {verdict}"


def write(out: Path, names: Sequence[str], protocol: Protocol) -> str:
    """Writes `report.md`, `report.csv`, `sheet.png`, `result.mp4` and `result.gif`.

    Returns:
        Text of the report.
    """
    results = [json.loads((out / name / "result.json").read_text()) for name in names]
    scores: list[Scores] = [result["scores"] for result in results]
    tuned = [index for index, one in enumerate(scores) if "finetuned" in one["walk"]]
    groups = [("All people", list(range(len(names)))), ("Finetuned people", tuned)]
    lines = [
        f"Catwalk benchmark v{protocol.version}: model {protocol.model} ({protocol.fingerprint}), "
        f"preset {protocol.preset}, {protocol.estimator} poses, {len(SCORED)} frames of each clip, "
        f"finetuned on {protocol.num_photos} photos.",
    ]
    cells = io.StringIO()
    sheet = csv.writer(cells, lineterminator="\n")
    sheet.writerow(["people", "method", "metric", "value", "low", "high"])
    for title, chosen in groups:
        if not chosen:
            continue
        found = {method: by_person([scores[i] for i in chosen], method) for method in ROWS}
        found = {method: values for method, values in found.items() if values}
        lines += ["", f"{title} ({len(chosen)}):", "", *table(found)]
        lines += ["", *table_by_motion([scores[i] for i in chosen], list(found))]
        for method, values in found.items():
            for metric, people in values.items():
                interval = metrics.bootstrap_mean(people)
                numbers = [f"{x:.6g}" for x in (interval.value, interval.low, interval.high)]
                sheet.writerow([len(chosen), method, metric, *numbers])
    seconds = [result["finetune_seconds"] for result in results if result["finetune_seconds"]]
    if seconds:
        lines += ["", f"Finetuning took {np.median(seconds):.0f} s a person on one core (median)."]
    lines += ["", *(goal.line() for goal in goals(out, names, scores, tuned))]
    text = "\n".join(lines)
    (out / "report.md").write_text(f"{text}\n")
    (out / "report.csv").write_text(cells.getvalue())
    draw_sheet(out, names, tuned).save(out / "sheet.png")
    write_video(out / "result.mp4", out, names[:3])
    return text


def by_person(scores: Sequence[Scores], method: str) -> dict[str, Float[np.ndarray, " n"]]:
    """Scores of a method with one value per person; empty unless all people have them."""
    if not all(method in clip for one in scores for clip in one.values()):
        return {}
    return {
        metric: np.array(
            [np.mean([clip[method][metric] for clip in one.values()]) for one in scores]
        )
        for metric in METRICS
    }


def table(found: Mapping[str, Mapping[str, Float[np.ndarray, " n"]]]) -> list[str]:
    """Markdown table of all methods; "L1 / copy" is the ratio of the means."""
    chosen = [metrics.METRICS[name] for name in METRICS]
    heads = [f"{m.title} {'↑' if m.higher_is_better else '↓'}" for m in chosen]
    heads = ["method", heads[0], "L1 / copy ↓", *heads[1:]]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for method, values in found.items():
        cells: list[str] = []
        for metric in chosen:
            interval = metrics.bootstrap_mean(values[metric.name])
            low, high = (f"{x:.{metric.digits}f}" for x in (interval.low, interval.high))
            cells.append(f"{interval.value:.{metric.digits}f} [{low}, {high}]")
        cells.insert(1, f"{ratio(found, method):.3f}")
        lines.append(f"| {' | '.join([ROWS[method], *cells])} |")
    return lines


def table_by_motion(scores: Sequence[Scores], methods: Sequence[str]) -> list[str]:
    """Markdown table of some scores, walks and turns apart; "L1 / copy" as in `table`."""
    motions = list(scores[0])
    heads = [f"{motion}: {name}" for motion in motions for name in ("L1 / copy", "SSIM", "lpips")]
    lines = [f"| method | {' | '.join(heads)} |", f"|{'---|' * (len(heads) + 1)}"]
    for method in methods:
        cells: list[str] = []
        for motion in motions:
            own = [one[motion][method] for one in scores]
            copied = np.mean([one[motion]["copy"]["l1"] for one in scores])
            cells.append(f"{np.mean([each['l1'] for each in own]) / copied:.3f}")
            cells += [f"{np.mean([each[m] for each in own]):.3f}" for m in ("ssim", "lpips-lite")]
        lines.append(f"| {ROWS[method]} | {' | '.join(cells)} |")
    return lines


def ratio(found: Mapping[str, Mapping[str, Float[np.ndarray, " n"]]], method: str) -> float:
    """L1 divided by the L1 of the copied photo."""
    return float(found[method]["l1"].mean() / found["copy"]["l1"].mean())


def goals(
    out: Path, names: Sequence[str], scores: Sequence[Scores], tuned: Sequence[int]
) -> list[Goal]:
    """Targets of the benchmark and their values."""
    everyone = {method: by_person(scores, method) for method in ("copy", "VAE", "base")}
    result = [
        Goal(text="base, L1 / copy", value=ratio(everyone, "base"), wanted=0.70),
        Goal(text="VAE, L1 / copy", value=ratio(everyone, "VAE"), wanted=0.25),
    ]
    if all("photos" in clip for one in scores for clip in one.values()):
        result += surface_goals(scores)
    if tuned:
        few = {
            method: by_person([scores[i] for i in tuned], method)
            for method in ("copy", "VAE", "finetuned")
        }
        ssim = {method: float(values["ssim"].mean()) for method, values in few.items()}
        closed = (ssim["finetuned"] - ssim["copy"]) / (ssim["VAE"] - ssim["copy"])
        share = ratio(few, "finetuned")
        result += [
            Goal(text="finetuned, L1 / copy (foundation)", value=share, wanted=0.55),
            Goal(text="finetuned, L1 / copy", value=share, wanted=0.45),
            Goal(
                text="finetuned, share of the SSIM gap between copy and VAE closed",
                value=closed,
                wanted=0.60,
                at_least=True,
            ),
        ]
    if len(names) > 1:
        same = [np.load(out / name / "pose.npz") for name in names]
        preds, truths = (np.stack([one[key] for one in same]) for key in ("pred", "truth"))
        share = np.mean([kept(preds[:, i], truths[:, i]).mean() for i in range(len(POSE_FRAMES))])
        text = f"identity kept, {len(names)} people in {len(POSE_FRAMES)} poses"
        result.append(Goal(text=text, value=float(share), wanted=0.90, at_least=True))
    files = sorted(out.glob("*/real.json"))
    points = [json.loads(file.read_text())["pck"] for file in files if file.parent.name in names]
    for method in ("base", "finetuned"):
        found = [person[method] for person in points if method in person]
        if found:
            text = f"{method}, PCK@0.2 of a real walk, {len(found)} people"
            result.append(Goal(text=text, value=float(np.mean(found)), wanted=0.85, at_least=True))
    return result


def surface_goals(scores: Sequence[Scores]) -> list[Goal]:
    """Targets of models with a surface condition, walks and turns apart."""

    def mean(method: str, metric: str, motions: Sequence[str] = ("walk", "turn")) -> float:
        return float(np.mean([one[motion][method][metric] for one in scores for motion in motions]))

    found: list[Goal] = []
    for motion, ssim, lite, share in (("walk", 0.955, 0.12, 0.33), ("turn", 0.940, 0.16, 0.36)):
        text, only = f"base, {motion}", [motion]
        copied = mean("copy", "l1", only)
        found += [
            Goal(text=f"{text}, SSIM", value=mean("base", "ssim", only), wanted=ssim,
                 at_least=True),
            Goal(text=f"{text}, lpips-lite", value=mean("base", "lpips-lite", only), wanted=lite),
            Goal(text=f"{text}, L1 / copy", value=mean("base", "l1", only) / copied, wanted=share),
        ]  # fmt: skip
    found += [
        Goal(text="base, three photos, turn, SSIM", value=mean("photos", "ssim", ["turn"]),
             wanted=0.955, at_least=True),
        Goal(text="base, three photos, turn, lpips-lite",
             value=mean("photos", "lpips-lite", ["turn"]), wanted=0.13),
        Goal(text="base, 100 x temporal difference error", value=100 * mean("base", "tde"),
             wanted=1.05),
    ]  # fmt: skip
    if all("read" in clip for one in scores for clip in one.values()):
        found += [
            Goal(text="base, poses by BlazePose, SSIM", value=mean("read", "ssim"), wanted=0.90,
                 at_least=True),
            Goal(text="base, poses by BlazePose, lpips-lite", value=mean("read", "lpips-lite"),
                 wanted=0.20),
        ]  # fmt: skip
    return found


def draw_sheet(out: Path, names: Sequence[str], tuned: Sequence[int]) -> Image.Image:
    """One row per person: photo, then pose, renders and truth in the middle of each clip."""
    shown = [names[i] for i in tuned[:SHEET_PEOPLE]] or list(names[:SHEET_PEOPLE])
    if "photos" in np.load(out / names[0] / "walk.npz").files and len(shown) < SHEET_PEOPLE:
        shown = list(names[:SHEET_PEOPLE])
    held = [np.load(out / name / "walk.npz").files for name in shown]
    wanted = ("preview", "base", "photos", "finetuned", "truth")
    methods = [method for method in wanted if all(method in files for files in held)]
    rows: list[np.ndarray] = []
    for name in shown:
        clips = [np.load(out / name / f"{motion}.npz") for motion in ("walk", "turn")]
        cells = [clips[0]["photo"]]
        for clip in clips:
            middle = len(clip["truth"]) // 2
            cells.append(_pose(clip["maps"][middle], clip["photo"].shape[:2]))
            cells += [clip[method][middle] for method in methods]
        rows.append(np.concatenate(cells, axis=1))
    titles = ["photo", *["pose", *methods] * 2]
    picture = np.concatenate(rows, axis=0)
    header = 14
    sheet = Image.new("RGB", (picture.shape[1], picture.shape[0] + header), "white")
    sheet.paste(Image.fromarray(picture), (0, header))
    draw = ImageDraw.Draw(sheet)
    for number, title in enumerate(titles):
        draw.text((number * picture.shape[1] // len(titles) + 4, 1), title, fill="black")
    return sheet


def write_video(path: Path, out: Path, names: Sequence[str]) -> None:
    """Writes the renders of the real walk beside photo and pose, as MP4 and as GIF."""
    clips = [np.load(out / name / "real.npz") for name in names]
    sides: list[np.ndarray] = []
    for clip in clips:
        renders = [clip[method] for method in ("base", "finetuned") if method in clip]
        size = renders[0].shape[1:3]
        photo = video.fit(clip["photo"][None], *size).repeat(len(renders[0]), axis=0)
        maps = np.stack([_pose(map_, size) for map_ in clip["maps"]])
        sides.append(np.concatenate([photo, maps, *renders], axis=2))
    film = np.concatenate(sides, axis=2)
    video.write(path, film, 15.0)
    pictures = [Image.fromarray(frame) for frame in film]
    # A common palette: palettes per frame would flicker.
    palette = Image.fromarray(np.concatenate([film[0], film[len(film) // 2]])).quantize(256)
    first, *others = [
        picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures
    ]
    first.save(
        path.with_suffix(".gif"), save_all=True, append_images=others, duration=1000 // 15, loop=0
    )


def _pose(maps: Float[np.ndarray, "2 H W"], size: tuple[int, ...]) -> UInt8[np.ndarray, "h w 3"]:
    """Draws U and V as red and green, and the silhouette as blue."""
    inside = (maps > 0).any(axis=0)
    picture = (np.stack([maps[0], maps[1], 0.6 * inside], axis=-1) * 255).astype(np.uint8)
    height, width = size
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST))
