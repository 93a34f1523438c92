#!/usr/bin/env python
"""How well videos and photos are read: time, colour, memory."""

import argparse
import io
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageCms
from skimage.color import deltaE_ciede2000, rgb2lab

from dreampose.io import photos, tone
from dreampose.io.video import VideoReader

PROFILES = {
    "Display P3": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), 2.2, (0.3127, 0.329)),
    "Adobe RGB": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), 563 / 256, (0.3127, 0.329)),
    "ProPhoto": ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), 1.8, (0.3457, 0.3585)),
}
"""Red, green, blue, gamma and white of common profiles of photos."""
MEMORY_LIMIT = 500
"""MB of a process that reads a 4K video of a minute."""
COLOUR_LIMIT = 2.0
"""Mean CIEDE2000 of a photo with a profile to the same in sRGB."""


def icc_profile(
    red: Sequence[float],
    green: Sequence[float],
    blue: Sequence[float],
    gamma: float,
    white: Sequence[float] = (0.3127, 0.329),
) -> bytes:
    """An ICC profile of a matrix and a gamma (ICC.1:2001-04), adapted to D50 by Bradford."""

    def xyz(x: float, y: float) -> np.ndarray:
        return np.array([x / y, 1.0, (1 - x - y) / y])

    def fixed(values: np.ndarray) -> bytes:
        return b"".join(
            round(float(value) * 65536).to_bytes(4, "big", signed=True) for value in values
        )

    bradford = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    primaries = np.stack([xyz(*point) for point in (red, green, blue)], axis=1)
    primaries = primaries * np.linalg.solve(primaries, xyz(*white))
    d50 = np.array([0.9642, 1.0, 0.8249])
    scale = np.diag((bradford @ d50) / (bradford @ xyz(*white)))
    adapted = np.linalg.inv(bradford) @ scale @ bradford @ primaries
    curve = b"curv" + bytes(4) + (1).to_bytes(4, "big") + round(gamma * 256).to_bytes(2, "big")
    tags = {
        b"desc": b"desc" + bytes(4) + (5).to_bytes(4, "big") + b"test\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + fixed(d50),
    }
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), adapted.T, strict=True):
        tags[name] = b"XYZ " + bytes(4) + fixed(column)
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        tags[name] = curve + bytes(2)
    table, body = len(tags).to_bytes(4, "big"), b""
    offset = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + (offset + len(body)).to_bytes(4, "big") + len(value).to_bytes(4, "big")
        body += value
    header = bytes(8) + (0x02400000).to_bytes(4, "big") + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    header += bytes(28) + fixed(d50)
    content = header.ljust(128, b"\0") + table + body
    return len(content).to_bytes(4, "big") + content[4:]


def hdr_signal(srgb: np.ndarray, transfer: int) -> np.ndarray:
    """SRGB in [0, 1] as HDR with white at 203 cd/m2, in BT.2020, by the standards' formulas."""
    light = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_2020 = np.array(
        [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
    )
    light = light @ to_2020.T
    if transfer == tone.PQ:
        power = (light * 203 / 10000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    scene = light * 0.26496256
    dark = np.sqrt(3 * scene)
    bright = 0.17883277 * np.log((12 * scene - 0.28466892).clip(1e-9)) + 0.55991073
    return np.where(dark <= 0.5, dark, bright)


def write_hdr(path: Path, signal: np.ndarray, transfer: int, num_frames: int = 5) -> None:
    """A lossless 10-bit video of one picture of HDR signal (H W 3) in [0, 1]."""
    pixels = (signal * 65535).round().astype(np.uint16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "yuv444p10le"
        context: Any = stream.codec_context
        context.color_trc, context.color_primaries = transfer, 9
        context.colorspace, context.color_range = 9, 1
        for number in range(num_frames):
            frame: Any = av.VideoFrame.from_ndarray(pixels, format="rgb48le")
            frame = frame.reformat(
                format="yuv444p10le",
                dst_colorspace=Colorspace.BT2020,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
            )
            frame.pts, frame.color_trc, frame.color_primaries = number, transfer, 9
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_4k(path: Path, *, seconds: int, fps: int = 30) -> None:
    """A 2160x3840 H.264 video; one second is encoded and then repeated."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 2160, 3840, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "28", "g": str(fps), "bf": "0"}
        packets: list[Any] = []
        for image in _moving(fps, 3840, 2160):
            packets += stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24"))
        packets += stream.encode(None)
        contents = [(bytes(p), p.pts, p.is_keyframe) for p in packets]
        for second in range(seconds):
            for content, time, is_key in contents:
                packet = av.Packet(content)
                packet.stream, packet.time_base = stream, Fraction(1, fps)
                packet.pts = packet.dts = time + fps * second
                packet.is_keyframe = is_key
                container.mux(packet)


def _moving(number: int, height: int, width: int) -> Iterator[np.ndarray]:
    for index in range(number):
        image = np.full((height, width, 3), 225, np.uint8)
        left = width * index // (2 * number)
        image[height // 5 : -height // 10, left : left + width // 4] = (40, 60, 160)
        yield image


def time_error(folder: Path) -> tuple[float, float]:
    """Seconds that a picture is shown too early or late, at most, after a pause of a second.

    Returns:
        As it is read, and if the frames were spread evenly over the video's length.
    """
    path = folder / "pause.mp4"
    times = [*range(16), *range(40, 56)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "10"})
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        for number, tick in enumerate(times):
            grey = np.full((64, 64, 3), 7 * number + 16, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    reader = VideoReader(path)
    shown = [round((float(frame.mean()) - 16) / 7) for frame in reader]
    truth = np.array(times) / 24
    read = [abs(shown.index(number) / reader.fps - truth[number]) for number in range(len(times))]
    even = np.abs(np.arange(len(times)) * 56 / 24 / len(times) - truth)
    return max(read), float(even.max())


def hdr_error(folder: Path, transfer: int) -> tuple[float, float, float]:
    """Difference of mean level, contrast and mean CIEDE2000 of HDR to the SDR it is made of."""
    rng = np.random.default_rng(0)
    srgb = np.kron(rng.uniform(0.05, 0.92, (20, 16, 3)), np.ones((8, 8, 1)))
    path = folder / f"hdr{transfer}.mkv"
    write_hdr(path, hdr_signal(srgb, transfer), transfer)
    shown = next(iter(VideoReader(path)))
    expected = (srgb * 255).round().astype(np.uint8)
    return (
        float(shown.mean() - expected.mean()),
        float(shown.std() / expected.std()),
        _colour_difference(shown, expected),
    )


def photo_error(name: str) -> tuple[float, float]:
    """Mean CIEDE2000 of a photo with a profile to the same in sRGB, as read and as stored."""
    y, x = np.mgrid[0:160, 0:128] / 160
    colours = np.stack([0.15 + 0.7 * y, 0.2 + 0.6 * x, 0.8 - 0.6 * y * x], axis=-1)
    picture = Image.fromarray((colours * 255).round().astype(np.uint8))
    profile = icc_profile(*PROFILES[name])
    wide: Any = ImageCms.profileToProfile(
        picture, ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(profile))
    )
    content = io.BytesIO()
    wide.save(content, "JPEG", quality=95, subsampling=0, icc_profile=profile)
    expected = np.asarray(picture)
    return (
        _colour_difference(photos.read(content.getvalue()), expected),
        _colour_difference(np.asarray(wide), expected),
    )


def peak_memory(path: Path) -> float:
    """Peak resident memory in MB of a process of its own that reads a video to its end."""
    done = subprocess.run(
        [sys.executable, __file__, "--read", str(path)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def _colour_difference(pixels: np.ndarray, expected: np.ndarray) -> float:
    return float(deltaE_ciede2000(rgb2lab(pixels), rgb2lab(expected)).mean())


def _read_all(path: str) -> None:
    """Reads a video to its end and prints the peak memory of this process in MB."""
    for frame in VideoReader(path):
        assert frame.ndim == 3
    status = Path("/proc/self/status").read_text()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    print(int(peak) / 1024)


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="of 4K video (%(default)s)")
    parser.add_argument(
        "--photos", type=Path, metavar="DIR", help="photos to compare with DIR/reference.png, too"
    )
    parser.add_argument("--read", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.read:
        _read_all(args.read)
        return 0
    met: list[bool] = []
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        read, even = time_error(folder)
        met.append(read <= 0.5 / 24)
        print(
            f"variable rate, a pause of 1 s: {read:.3f} s off at most (spread evenly: {even:.3f})"
        )
        for transfer in (tone.HLG, tone.PQ):
            level, contrast, difference = hdr_error(folder, transfer)
            met.append(abs(level) < 5 and abs(contrast - 1) < 0.05)
            print(
                f"{tone.name(transfer)}: mean level off by {level:+.1f} of 255, contrast "
                f"{contrast:.3f}, CIEDE2000 {difference:.2f}"
            )
        differences = {profile: photo_error(profile) for profile in PROFILES}
        if args.photos:
            reference = photos.read(args.photos / "reference.png")
            for path in sorted(args.photos.iterdir()):
                if path.suffix.lower() in (".jpg", ".png", ".tif", ".tiff", ".webp", ".heic"):
                    found = photos.read(path), np.asarray(Image.open(path).convert("RGB"))
                    differences[path.name] = (
                        _colour_difference(found[0], reference),
                        _colour_difference(found[1], reference),
                    )
        for profile, (difference, stored) in differences.items():
            met.append(difference < COLOUR_LIMIT)
            print(f"photo, {profile}: CIEDE2000 {difference:.2f} (profile ignored: {stored:.2f})")
        sizes: list[float] = []
        for seconds in (max(1, args.seconds // 6), args.seconds):
            path = folder / "4k.mp4"
            write_4k(path, seconds=seconds)
            sizes.append(peak_memory(path))
        met.append(sizes[1] <= MEMORY_LIMIT and sizes[1] - sizes[0] < 60)
        print(
            f"2160x3840, {args.seconds} s: {sizes[1]:.0f} MB at most "
            f"({sizes[0]:.0f} MB for a sixth of it)"
        )
    print("all met" if all(met) else "NOT all met")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
