"""Videos as players show them: in time, in shape and in colour."""

import struct
import warnings
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from dreampose.errors import InputError, VideoWarning
from dreampose.io import video
from dreampose.io.video import VideoReader


def picture(number, height=64, width=48):
    """A frame whose grey level tells its number, with a red corner at the top left."""
    frame = np.full((height, width, 3), 10 * number + 20, np.uint8)
    frame[: height // 4, : width // 4] = (230, 20, 20)
    return frame


def encode(path, frames, *, times=None, codec="libx264", rate=24, options=(), **stream_options):
    """Writes frames at these times (in ticks of 1/rate; by default one after the other)."""
    base = Fraction(1, rate)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=dict(options) or {"crf": "12"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = base
        for name, value in stream_options.items():
            setattr(stream.codec_context, name, value)
        for tick, image in zip(times or range(len(frames)), frames, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = tick, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def numbers(frames):
    """The numbers of frames that `picture` made."""
    return [round((frame[-4:, -4:].mean() - 20) / 10) for frame in frames]


def display_matrix(path, values):
    """Writes a display matrix into an MP4's track header."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    one, a, b, c, d = 0x10000, *values
    content[place : place + 36] = struct.pack(
        ">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 0x40000000
    )
    path.write_bytes(content)


def test_a_pause_lasts_as_long_as_in_the_file(tmp_path):
    path = tmp_path / "pause.mp4"
    encode(path, [picture(n) for n in range(8)], times=[0, 1, 2, 3, 15, 16, 17, 18])
    with pytest.warns(VideoWarning, match="variable frame rate.*8 frames become 19"):
        clip = video.read(path)
    assert clip.fps == 24
    assert numbers(clip.frames) == [0, 1, 2] + [3] * 12 + [4, 5, 6, 7]


def test_frames_that_come_too_often_are_dropped(tmp_path):
    path = tmp_path / "burst.mkv"
    times = [0, 40, 80, 120, 130, 140, 160, 200, 240, 280]
    encode(path, [picture(n) for n in range(10)], times=times, rate=1000)
    with pytest.warns(VideoWarning, match="variable"):
        clip = video.read(path)
    assert clip.fps == 25
    assert numbers(clip.frames) == [0, 1, 2, 4, 6, 7, 8, 9]


@pytest.mark.parametrize("end", [".mp4", ".mkv", ".avi", ".webm"])
def test_a_constant_rate_is_unchanged(tmp_path, end):
    path = tmp_path / f"clip{end}"
    codec = {".avi": "mpeg4", ".webm": "libvpx"}.get(end, "libx264")
    encode(path, [picture(n) for n in range(12)], codec=codec, rate=30, options={"crf": "12"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader = VideoReader(path, strict=True)
        frames = list(reader)
    assert reader.fps == pytest.approx(30, rel=1e-3)
    assert len(reader) == reader.count() == len(frames) == 12
    assert numbers(frames) == list(range(12))


def test_frames_are_decoded_anew_and_can_be_cut(tmp_path):
    path = tmp_path / "clip.mp4"
    encode(path, [picture(n) for n in range(10)])
    part = VideoReader(path).between(3, 7).between(1, 3)
    assert (len(part), part.first_frame) == (2, 4)
    assert numbers(part) == numbers(part) == [4, 5]
    with pytest.raises(InputError, match="range A:B with 0 <= A < B <= 2, got 1:3"):
        part.between(1, 3)


@pytest.mark.parametrize(
    ("ratio", "width"), [(Fraction(2), 96), (Fraction(1, 2), 24), (Fraction(4, 3), 64)]
)
def test_pixels_that_are_not_square_are_stretched(tmp_path, ratio, width):
    path = tmp_path / "clip.mp4"
    encode(path, [picture(n) for n in range(5)], sample_aspect_ratio=ratio)
    reader = VideoReader(path)
    frame = next(iter(reader))
    assert (reader.height, reader.width) == frame.shape[:2] == (64, width)
    assert frame[4, round(width * 0.2), 0] > 180 > 60 > frame[4, round(width * 0.35), 0]


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_turned_and_mirrored_as_the_file_asks(tmp_path, quarters, mirrored):
    path = tmp_path / "clip.mp4"
    stored = picture(3)
    encode(path, [stored] * 5)
    expected = np.rot90(stored[:, ::-1] if mirrored else stored, -quarters)
    turn = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), quarters)
    (a, c), (b, d) = (turn @ np.diag([-1 if mirrored else 1, 1])).tolist()
    display_matrix(path, (a, b, c, d))
    shown = video.read(path, max_frames=1).frames[0]
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).mean() < 6
    if not mirrored:
        opencv = cv2.VideoCapture(str(path)).read()[1][:, :, ::-1]
        assert np.abs(shown.astype(int) - opencv).max() <= 3


def hdr_signal(srgb, transfer):
    """sRGB as HDR with reference white at 203 cd/m2, in BT.2020, by the standards' formulas."""
    light = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_2020 = np.array(
        [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
    )
    light = light @ to_2020.T
    if transfer == 16:
        power = (light * 203 / 10000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    scene = light * 0.26496256
    dark = np.sqrt(3 * scene)
    bright = 0.17883277 * np.log((12 * scene - 0.28466892).clip(1e-9)) + 0.55991073
    return np.where(dark <= 0.5, dark, bright)


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_becomes_the_sdr_that_it_was_made_of(tmp_path, transfer):
    path = tmp_path / "hdr.mkv"
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0.08, 0.88, (8, 6, 3))
    srgb = np.kron(coarse, np.ones((8, 8, 1)))
    signal = (hdr_signal(srgb, transfer) * 65535).round().astype(np.uint16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.height, stream.width, stream.pix_fmt = 64, 48, "yuv444p10le"
        stream.codec_context.color_trc = transfer
        stream.codec_context.color_primaries = 9
        stream.codec_context.colorspace = 9
        stream.codec_context.color_range = 1
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(signal, format="rgb48le")
            frame = frame.reformat(
                format="yuv444p10le",
                dst_colorspace=Colorspace.BT2020,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
            )
            frame.pts = number
            frame.color_trc, frame.color_primaries = transfer, 9
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    shown = video.read(path).frames[2].astype(float)
    middle = shown[4::8, 4::8]
    assert np.abs(middle - coarse * 255).mean() < 3
    assert abs(shown.mean() - srgb.mean() * 255) < 2
    assert 0.96 < shown.std() / (srgb.std() * 255) < 1.04


def test_light_above_white_keeps_its_order_and_its_hue():
    from dreampose.io import tone

    light = np.array([0.2, 0.9, 1.0, 1.5, 2.5, 3.5])
    power = (light[:, None] * np.array([203, 101, 101]) / 10000) ** 0.1593017578125
    signal = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    shown = tone.to_srgb((signal[None] * 65535).round().astype(np.uint16), 16, 1)[0]
    assert (np.diff(shown[:4, 0].astype(int)) > 0).all() and shown[-1, 0] == 255
    linear = np.where(shown / 255 <= 0.04045, shown / 255 / 12.92,
                      ((shown / 255 + 0.055) / 1.055) ** 2.4)  # fmt: skip
    np.testing.assert_allclose(linear[:, 1] / linear[:, 0], 101 / 203, atol=0.02)


def test_a_truncated_file_is_reported_and_rejected_if_strict(tmp_path):
    path = tmp_path / "clip.mp4"
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (64, 48, 3), np.uint8) for _ in range(24)]
    video.write(path, frames, 24)  # with its index at the beginning
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.warns(VideoWarning, match=r"cut off or damaged: 1\d of its 24 frames"):
        clip = video.read(path)
    assert 10 <= len(clip.frames) < 24
    with pytest.raises(InputError, match="cut off or damaged"), warnings.catch_warnings():
        video.read(path, strict=True)


def test_a_change_of_size_is_fitted_and_reported(tmp_path):
    path = tmp_path / "change.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "12"})
        stream.height, stream.width, stream.pix_fmt = 64, 48, "yuv420p"
        tick = 0
        for height, width in ((64, 48), (128, 96), (32, 96)):
            encoder = av.CodecContext.create("libx264", "w")
            encoder.height, encoder.width, encoder.pix_fmt = height, width, "yuv420p"
            encoder.time_base = Fraction(1, 24)
            encoder.options = {"crf": "12", "x264-params": "repeat-headers=1", "bf": "0"}
            images = [av.VideoFrame.from_ndarray(picture(3, height, width), format="rgb24")] * 4
            packets = [packet for image in images for packet in encoder.encode(image)]
            for packet in [*packets, *encoder.encode(None)]:
                packet.stream, packet.time_base = stream, Fraction(1, 24)
                packet.pts = packet.dts = tick
                tick += 1
                container.mux(packet)
    with pytest.warns(VideoWarning, match="change in size from 48x64 to 96x128 at frame 4"):
        frames = video.read(path).frames
    assert frames.shape == (12, 64, 48, 3)
    assert np.abs(frames[5].astype(int) - picture(3)).mean() < 5
    assert frames[-1][:20].max() < 20 < frames[-1][32].min()  # letterboxed, not stretched
    with pytest.raises(InputError, match="change in size"):
        video.read(path, strict=True)


def test_a_cover_picture_is_no_video(tmp_path):
    path = tmp_path / "song.m4a"
    cv2.imwrite(str(tmp_path / "cover.png"), picture(2))
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=44100)
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 48, 64, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp",
                                             layout="mono")  # fmt: skip
        silence.sample_rate = 44100
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(2), format="rgb24")))
        container.mux(cover.encode(None))
    with pytest.raises(InputError, match="cover picture and no video"):
        video.read(path)
    (tmp_path / "photo.mp4").write_bytes((tmp_path / "cover.png").read_bytes())
    with pytest.raises(InputError, match=r"is a picture \(PNG\), no video"):
        video.count(tmp_path / "photo.mp4")


def test_quicktime_without_a_type_is_read(tmp_path):
    path = tmp_path / "clip.mov"
    encode(path, [picture(n) for n in range(6)])
    content = path.read_bytes()
    length = int.from_bytes(content[:4], "big")
    assert content[4:8] == b"ftyp"
    # Chunk offsets count from the beginning of the file.
    path.write_bytes(struct.pack(">I", length) + b"wide" + bytes(length - 8) + content[length:])
    assert numbers(video.read(path).frames) == list(range(6))


def test_tags_in_another_encoding_do_not_matter(tmp_path):
    path = tmp_path / "clip.avi"
    encode(path, [picture(n) for n in range(6)], codec="mpeg4")
    content = path.read_bytes()
    place = content.index(b"ISFT") + 8
    path.write_bytes(content[:place] + b"Gr\xf6\xdfe\xff" + content[place + 6 :])
    assert numbers(video.read(path).frames) == list(range(6))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 42\n", "Git LFS"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\n/etc/hosts\n", "cannot decode|playlist"),
        (b"ffconcat version 1.0\nfile 'a.mp4'\n", "cannot decode|list of other files"),
        (bytes(5000), "zeros alone"),
        (b"\x00\x00\x00\x18ftypisom" + bytes(3000), "cannot decode|no video"),
        (np.random.default_rng(0).bytes(5000), "cannot decode|no video"),
    ],
)
def test_what_is_no_video_is_one_sentence(tmp_path, content, reason):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"video: .*({reason})"):
        video.read(path)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libvpx"])
def test_damaged_files_give_frames_or_an_input_error(tmp_path, codec):
    """Bounded fuzzing: nothing but InputError leaves the reader."""
    end = {"libx264": ".mp4", "mpeg4": ".avi", "libvpx": ".webm"}[codec]
    path, broken = tmp_path / f"clip{end}", tmp_path / f"broken{end}"
    encode(path, [picture(n) for n in range(6)], codec=codec)
    content = path.read_bytes()
    rng = np.random.default_rng(7)
    refusals: list[str] = []
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 30)):
            damaged[place] = rng.integers(256)
        if rng.random() < 0.3:
            damaged = damaged[: rng.integers(1, len(damaged))]
        broken.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VideoWarning)
            try:
                frames = list(VideoReader(broken))
            except InputError as error:
                refusals.append(str(error))
            else:
                assert frames and len({frame.shape for frame in frames}) == 1
    assert len(refusals) > 5
    assert all("\n" not in reason and len(reason) < 500 for reason in refusals)
