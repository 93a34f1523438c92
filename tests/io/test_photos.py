"""Photos as sRGB, whatever they come in."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms
from skimage.color import deltaE_ciede2000, rgb2lab

from dreampose.errors import InputError, PhotoWarning
from dreampose.io import photos
from dreampose.io.photos import read


@pytest.fixture(scope="module")
def picture():
    """Colours inside of sRGB, smooth so that compression changes little."""
    y, x = np.mgrid[0:64, 0:48] / 64
    colours = np.stack([0.15 + 0.7 * y, 0.2 + 0.6 * x, 0.8 - 0.6 * y * x], axis=-1)
    return (colours * 255).round().astype(np.uint8)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def profile(red, green, blue, gamma, white=(0.3127, 0.3290)):
    """An ICC profile of matrix and gamma, written out by the specification (ICC.1, version 2)."""

    def xyz(x, y):
        return np.array([x / y, 1.0, (1 - x - y) / y])

    bradford = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    primaries = np.stack([xyz(*p) for p in (red, green, blue)], axis=1)
    primaries = primaries * np.linalg.solve(primaries, xyz(*white))
    d50 = np.array([0.9642, 1.0, 0.8249])
    scale = np.diag((bradford @ d50) / (bradford @ xyz(*white)))
    adapted = np.linalg.inv(bradford) @ scale @ bradford @ primaries

    def fixed(values):
        return b"".join(round(float(v) * 65536).to_bytes(4, "big", signed=True) for v in values)

    text = b"desc" + bytes(4) + (5).to_bytes(4, "big") + b"test\0" + bytes(78)
    curve = b"curv" + bytes(4) + (1).to_bytes(4, "big") + round(gamma * 256).to_bytes(2, "big")
    tags = {b"desc": text, b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": b"XYZ " + bytes(4)
            + fixed(d50)}  # fmt: skip
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
    header += bytes(128 - len(header))
    content = header + table + body
    return len(content).to_bytes(4, "big") + content[4:]


PROFILES = {
    "Display P3": profile((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), 2.2),
    "Adobe RGB": profile((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), 563 / 256),
    "ProPhoto": profile(
        (0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), 1.8, (0.3457, 0.3585)
    ),
}  # fmt: skip


def difference(pixels, expected):
    return float(deltaE_ciede2000(rgb2lab(pixels), rgb2lab(expected)).mean())


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("end", ["png", "jpg", "tiff", "webp"])
def test_an_embedded_profile_is_converted(tmp_path, picture, name, end):
    source = ImageCms.ImageCmsProfile(io.BytesIO(PROFILES[name]))
    wide = ImageCms.profileToProfile(
        Image.fromarray(picture), ImageCms.createProfile("sRGB"), source
    )
    options = {"jpg": {"quality": 98, "subsampling": 0}, "webp": {"lossless": True}}.get(end, {})
    path = saved(tmp_path / f"a.{end}", wide, icc_profile=PROFILES[name], **options)
    assert difference(np.asarray(wide), picture) > 2, "the profile must matter"
    assert difference(read(path), picture) < 1


def test_transparency_and_grey_keep_their_place_beside_a_profile(tmp_path, picture):
    cut_out = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
    cut_out[:8, :, 3] = 0
    path = saved(tmp_path / "a.png", Image.fromarray(cut_out), icc_profile=PROFILES["Display P3"])
    got = read(path)
    assert (got[:8] == 255).all() and difference(got[8:], picture[8:]) > 1
    grey = Image.fromarray(picture[..., 0])
    assert read(saved(tmp_path / "grey.png", grey)).shape == picture.shape


def test_srgb_is_bit_exact_and_a_broken_profile_is_reported(tmp_path, picture):
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = saved(tmp_path / "a.png", Image.fromarray(picture), icc_profile=own)
    assert np.array_equal(read(path), picture)
    path = saved(tmp_path / "b.png", Image.fromarray(picture), icc_profile=b"no profile")
    with pytest.warns(PhotoWarning, match="colour profile of .*b.png' cannot be used"):
        assert np.array_equal(read(path), picture)


def test_cameras_note_adobe_rgb_without_a_profile(tmp_path, picture):
    source = ImageCms.ImageCmsProfile(io.BytesIO(PROFILES["Adobe RGB"]))
    wide = ImageCms.profileToProfile(
        Image.fromarray(picture), ImageCms.createProfile("sRGB"), source
    )
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    path = saved(tmp_path / "a.jpg", wide, exif=exif, quality=98, subsampling=0)
    assert difference(read(path), picture) < 1.5


def test_heic_and_avif_are_read_whatever_they_are_called(tmp_path, picture, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.fromarray(picture)).save(tmp_path / "a.heic", quality=95)
    (tmp_path / "named.jpg").write_bytes((tmp_path / "a.heic").read_bytes())
    for name in ("a.heic", "named.jpg"):
        assert difference(read(tmp_path / name), picture) < 3
        assert photos.size(tmp_path / name) == (64, 48)
    path = saved(tmp_path / "a.avif", Image.fromarray(picture), quality=95)
    assert difference(read(path), picture) < 3
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(InputError, match=r"HEIC needs the package pillow-heif.*convert it to JPEG"):
        read(tmp_path / "named.jpg")


def test_a_turned_photo_is_upright_and_its_size_known(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "a.png", Image.fromarray(np.rot90(picture).copy()), exif=exif)
    assert np.array_equal(read(path), picture)
    assert photos.size(path) == (64, 48) == read(path.read_bytes()).shape[:2]


@pytest.mark.parametrize("end", ["jpg", "png"])
def test_a_large_photo_is_reduced_while_it_is_read(tmp_path, picture, end):
    large = Image.fromarray(picture).resize((1440, 1920), Image.Resampling.BICUBIC)
    path = saved(tmp_path / f"a.{end}", large)
    got = read(path, max_side=320)
    assert got.shape == (320, 240, 3)
    expected = np.asarray(large.resize((240, 320), Image.Resampling.LANCZOS))
    assert np.abs(got.astype(int) - expected).max() <= 8
    assert np.array_equal(read(path, max_side=1920), read(path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is an empty file"),
        (b"no picture", "no known format"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\0\0\0\x18ftypmp42" + bytes(99), "is a video; export a frame"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "JXL is not in this installation"),
    ],
)
def test_what_is_no_photo_is_one_sentence(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=f"photo: .*{reason}"):
        read(tmp_path / "a.png")
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "none.png")
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path / ("x" * 300))


@pytest.mark.parametrize("end", ["png", "jpg", "webp", "gif", "bmp", "tiff", "avif"])
def test_damaged_files_give_pixels_or_an_input_error(tmp_path, picture, end):
    """Bounded fuzzing: nothing but InputError leaves the reader."""
    options = {} if end in ("gif", "bmp") else {"icc_profile": PROFILES["Display P3"]}
    content = saved(tmp_path / f"a.{end}", Image.fromarray(picture), **options).read_bytes()
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(80):
        damaged = bytearray(content)
        for place in rng.integers(0, min(len(content), 1200), rng.integers(1, 12)):
            damaged[place] = rng.integers(256)
        if rng.random() < 0.4:
            damaged = damaged[: rng.integers(0, len(damaged))]
        with np.errstate(all="ignore"), pytest.MonkeyPatch.context() as patched:
            patched.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
            try:
                pixels = read(bytes(damaged), max_side=256)
            except InputError:
                refused += 1
            else:
                assert pixels.dtype == np.uint8 and max(pixels.shape[:2]) <= 256
    assert refused > 5
