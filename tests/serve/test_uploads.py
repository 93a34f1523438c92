"""Validation of uploads."""

import io
import struct
import zipfile
import zlib

import av
import numpy as np
import pytest
from PIL import Image

from dreampose.errors import InputError
from dreampose.io import video
from serve.config import Limits
from serve.service.uploads import check_motion, normalize_photo

FPS = 12.5


def picture(width=48, height=64, format="PNG", **options):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format=format, **options)
    return buffer.getvalue()


def png_that_claims(width, height):
    """A few bytes that promise many pixels."""

    def part(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header)
        + part(b"IDAT", zlib.compress(b"\0" * 1000)) + part(b"IEND", b"")
    )  # fmt: skip


def movie(tmp_path, *, num_frames=10, width=48, height=64, fps=FPS, suffix=".mp4", codec="libx264"):
    path = tmp_path / f"made{suffix}"
    if suffix == ".mp4":
        video.write(path, np.zeros((num_frames, height, width, 3), np.uint8), fps)
        return path.read_bytes()
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=round(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def sound(tmp_path):
    """A file like a video's in which nothing can be seen."""
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def track(**changes):
    """A motion file's arrays, some of them exchanged; None leaves one out."""
    values = {
        "format": np.int32(1),
        "maps": np.zeros((10, 2, 64, 48), np.uint8),
        "joints": np.zeros((10, 3, 4), np.float32),
        "confidence": np.ones(10, np.float32),
        "fps": np.float64(FPS),
        "source": np.str_(""),
        "estimator": np.str_(""),
        "num_filled": np.int32(0),
        "joint_names": np.array([], np.str_),
        "painted": np.bool_(False),
    } | changes
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{k: v for k, v in values.items() if v is not None})
    return buffer.getvalue()


def archive(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def npy_that_claims(shape, dtype="|u1"):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (63 - (10 + len(header)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


GOOD_PHOTO, GOOD_TRACK = picture(), track()
PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
CONCAT = b"ffconcat version 1.0\nfile /etc/passwd\n"

PHOTOS = {
    "empty": b"",
    "text": b"no picture at all",
    "html": b"<html><script>alert(1)</script></html>",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "gif": picture(format="GIF"),
    "bmp": picture(format="BMP"),
    "tiff": picture(format="TIFF"),
    "pdf": b"%PDF-1.7\n",
    "half a PNG": GOOD_PHOTO[: len(GOOD_PHOTO) // 2],
    "half a JPEG": picture(format="JPEG")[:400],
    "a PNG's magic alone": GOOD_PHOTO[:8],
    "a JPEG's magic before a zip": b"\xff\xd8\xff" + GOOD_TRACK,
    "a motion": GOOD_TRACK,
    "a playlist": PLAYLIST,
    "100 megapixels claimed": png_that_claims(10_000, 10_000),
    "four thousand million pixels claimed": png_that_claims(2**31 - 1, 2),
    "no width": png_that_claims(0, 64),
    "one line": picture(width=600, height=2),
    "too long": png_that_claims(20_000, 20),
}

TRACKS = {
    "empty": b"",
    "text": b"no motion at all",
    "html": b"<html></html>",
    "a playlist that names a file": PLAYLIST,
    "a list for FFmpeg that names a file": CONCAT,
    "a picture": GOOD_PHOTO,
    "a GIF": picture(format="GIF"),
    "half a track": GOOD_TRACK[: len(GOOD_TRACK) // 2],
    "a zip of nothing": b"PK\x05\x06" + bytes(18),
    "a zip of something else": archive(readme=b"hello"),
    "no maps": track(maps=None),
    "no frame rate": track(fps=None),
    "another format": track(format=np.int32(9)),
    "pickled objects": track(source=np.array([{"a": 1}], dtype=object)),
    "maps of three dimensions": track(maps=np.zeros((10, 64, 48), np.uint8)),
    "maps of three channels": track(maps=np.zeros((10, 3, 64, 48), np.uint8)),
    "joints of other frames": track(joints=np.zeros((9, 3, 4), np.float32)),
    "joints without places": track(joints=np.full((10, 3, 4), np.nan, np.float32)),
    "confidence of other frames": track(confidence=np.ones(9, np.float32)),
    "names of other joints": track(joint_names=np.array(["hip"])),
    "0 frames per second": track(fps=np.float64(0)),
    "minus 1 frames per second": track(fps=np.float64(-1)),
    "no number of frames per second": track(fps=np.float64("nan")),
    "endless frames per second": track(fps=np.float64("inf")),
    "a million frames per second": track(fps=np.float64(1e6)),
    "four frames": track(
        maps=np.zeros((4, 2, 64, 48), np.uint8),
        joints=np.zeros((4, 3, 4), np.float32),
        confidence=np.ones(4, np.float32),
    ),
    "no frames": track(
        maps=np.zeros((0, 2, 64, 48), np.uint8),
        joints=np.zeros((0, 3, 4), np.float32),
        confidence=np.ones(0, np.float32),
    ),
    "another aspect": track(maps=np.zeros((10, 2, 64, 64), np.uint8)),
    "a terabyte claimed": archive(maps=npy_that_claims((10**9, 2, 64, 48))),
    "a broken header": archive(maps=b"\x93NUMPY\x01\x00\xff\xff{"),
    "a header that is code": archive(maps=npy_that_claims("__import__('os')")),
    "many members": archive(**{f"m{i}": b"" for i in range(40)}),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_invalid_photo_is_rejected_with_a_message(shared, motion_file, name):
    answer = shared.client.post(
        "/v1/videos",
        files={"input_reference": ("photo.png", PHOTOS[name]), "motion": motion_file.read_bytes()},
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"].startswith("photo ")
    assert shared.client.get("/healthz").status_code == 200
    assert shared.backend.calls == []


@pytest.mark.parametrize("name", TRACKS)
def test_invalid_motion_is_rejected_with_a_message(shared, name):
    answer = shared.client.post("/v1/motions", files={"file": ("motion.npz", TRACKS[name])})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"].startswith(("motion must ", "motion: ")), error
    assert "/tmp" not in error["message"]
    assert shared.client.get("/healthz").status_code == 200
    assert list(shared.service.motions.root.glob("motion_*")) == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"preset": "best"}, "preset"),
        ({"preset": "x" * 5000}, "preset"),
        ({"seed": "-1"}, "seed"),
        ({"seed": str(2**63)}, "seed"),
        ({"seed": "1.5"}, "seed"),
        ({"seed": "one"}, "seed"),
        ({"model": "sora-2"}, "model"),
        ({"model": "../../etc"}, "model"),
        ({"size": "720x1280"}, "size"),
        ({"size": "99999999x99999999"}, "size"),
        ({"size": "big"}, "size"),
        ({"seconds": "0"}, "seconds"),
        ({"seconds": "-4"}, "seconds"),
        ({"seconds": "nan"}, "seconds"),
        ({"seconds": "inf"}, "seconds"),
        ({"seconds": "1e99"}, "seconds"),
        ({"seconds": "0.1"}, "seconds"),
        ({"align": "perhaps"}, "align"),
        ({"subject": "anna"}, "subject"),
        ({"subject": "../anna"}, "subject"),
        ({"subject": ".jobs"}, "subject"),
        ({"motion": "motion_" + "0" * 32}, "motion"),
        ({"motion": "../../../etc/passwd"}, "motion"),
        ({"motion": "file:///etc/passwd"}, "motion"),
        ({"input_reference": "not a file"}, "input_reference"),
    ],
)
def test_invalid_field_is_named(shared, photo_file, fields, field):
    files = {} if "input_reference" in fields else {"input_reference": photo_file.read_bytes()}
    answer = shared.client.post("/v1/videos", data=fields, files=files or {"prompt": (None, "x")})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == field, error
    assert len(error["message"]) < 400
    assert shared.backend.calls == []


@pytest.mark.parametrize(
    "video_id", ["..", "..%2f..%2fetc", "%00", "video_0", "a" * 300, "ü", "-rf", "video_%0a", "%2e"]
)
@pytest.mark.parametrize("kind", ["videos", "motions", "subjects"])
def test_invalid_id_is_not_found(shared, kind, video_id):
    for method in ("GET", "DELETE"):
        answer = shared.client.request(method, f"/v1/{kind}/{video_id}")
        assert answer.status_code in (404, 405), answer.text


@pytest.mark.parametrize("content", [b"", b"--b", b"--b\r\n\r\n\r\n--b--", b"\0" * 100])
def test_broken_form_is_rejected(shared, content):
    for kind in ("multipart/form-data; boundary=b", "multipart/form-data", "text/plain", ""):
        headers = {"Content-Type": kind}
        answer = shared.client.post("/v1/videos", content=content, headers=headers)
        assert answer.status_code in (400, 415), answer.text
        assert answer.json()["error"]["message"]


def test_too_many_photos_are_rejected(make_service, post):
    running = make_service(max_photos=2)
    assert post(running.client, photos=3).status_code == 400
    assert post(running.client, photos=0, seed="1").status_code == 400
    assert post(running.client, photos=2).status_code == 200


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_photos_pass_under_any_name(format):
    content = picture(format=format)
    stored = normalize_photo(content, Limits(), max_side=1024)
    with Image.open(io.BytesIO(stored)) as image:
        assert (image.format, image.size) == ("PNG", (48, 64))


def test_photo_pixels_are_limited():
    normalize_photo(picture(100, 100), Limits(photo_megapixels=0.01), max_side=1024)
    with pytest.raises(InputError, match=r"at most 0\.01 megapixels, got 101x100"):
        normalize_photo(picture(101, 100), Limits(photo_megapixels=0.01), max_side=1024)


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "libx264"), (".mkv", "libx264"), (".avi", "mpeg4")]
)
def test_videos_pass_under_any_name(tmp_path, tiny_recipe, suffix, codec):
    upload = tmp_path / "upload"
    upload.write_bytes(movie(tmp_path, suffix=suffix, codec=codec, fps=25))
    facts = check_motion(upload, Limits(), tiny_recipe)
    assert (facts.num_frames, facts.fps) == (10, 25)


@pytest.mark.parametrize(
    ("made", "limits", "sentence"),
    [
        ({"num_frames": 4}, {}, "at least 5 frames"),
        ({"num_frames": 11}, {"max_frames": 10}, "at most 10 frames"),
        ({"num_frames": 20}, {"max_seconds": 1}, "at most 1 s, got 1.6 s"),
        ({}, {"max_fps": 10}, "1 to 10 frames per second, got 12.5"),
        ({}, {"frame_megapixels": 0.003}, "at most 0.003 megapixels, got 48x64"),
        ({}, {"video_megapixels": 0.02}, "at most 0.02 megapixels in all"),
        ({}, {"probe_timeout_s": 1e-9}, "decoded within"),
        ({"width": 8}, {}, "16 to 16384 pixels wide and high, got 8x64"),
    ],
)
def test_video_beyond_a_limit_is_rejected(tmp_path, tiny_recipe, made, limits, sentence):
    upload = tmp_path / "upload"
    upload.write_bytes(movie(tmp_path, **made))
    with pytest.raises(InputError, match=sentence.replace(".", r"\.")):
        check_motion(upload, Limits(**limits), tiny_recipe)


def test_broken_videos_are_rejected(tmp_path, tiny_recipe):
    whole = movie(tmp_path)
    broken = {
        "half": whole[: len(whole) // 2],
        "head": whole[:32],
        "sound": sound(tmp_path),
        "noise": whole[:8] + bytes(np.random.default_rng(0).integers(0, 256, 5000, np.uint8)),
        "an MP4's magic before a playlist": whole[:8] + PLAYLIST,
        "a Matroska's magic": b"\x1a\x45\xdf\xa3" + bytes(100),
        "an AVI's magic": b"RIFF\x10\0\0\0AVI " + bytes(100),
    }
    for name, content in broken.items():
        upload = tmp_path / "upload"
        upload.write_bytes(content)
        with pytest.raises(InputError) as refused:
            check_motion(upload, Limits(), tiny_recipe)
        assert str(refused.value).startswith("motion must"), name


def test_valid_track_passes(tmp_path, tiny_recipe):
    (tmp_path / "upload").write_bytes(GOOD_TRACK)
    facts = check_motion(tmp_path / "upload", Limits(), tiny_recipe)
    assert (facts.suffix, facts.num_frames, facts.fps) == (".npz", 10, FPS)
