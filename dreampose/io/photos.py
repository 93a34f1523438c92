"""Photos of any common format as upright sRGB pixels."""

import io
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps

from dreampose.errors import InputError, PhotoWarning
from dreampose.io import formats, tone

BACKGROUND = 255
"""Grey level behind what is transparent."""
HUGE_PIXELS = 16_000_000
"""Photos with more pixels are decoded one at a time in a process: memory does not add up."""

_COLOUR_SPACE, _INTEROPERABILITY = 0xA001, 0xA005
"""EXIF tags: a camera's Adobe RGB without a profile is uncalibrated (65535), index R03."""
_LATTICE = np.stack(np.meshgrid(*[np.linspace(0, 255, 6).round()] * 3), axis=-1).astype(np.uint8)
"""Colours by which a profile is compared with sRGB."""

_huge = threading.Lock()

Photo = UInt8[np.ndarray, "H W 3"]


def read(source: str | Path | bytes, *, max_side: int | None = None) -> Photo:
    """Decodes a photo upright (its EXIF turn applied), in sRGB.

    Embedded colour profiles are converted (relative colorimetric with black point compensation).
    What is transparent shows white behind it; 16-bit grey is scaled to 8 bits. HEIC needs the
    package pillow-heif.

    Args:
        source: a file, or its content.
        max_side: longest side in pixels that is needed: a larger photo is reduced to it, JPEG
            already while it is decoded.

    Raises:
        InputError: the file is missing, or is not a picture that can be decoded whole.
    """
    name = _name(source)
    content = _opened(source)
    with content:
        kind = _checked_kind(content, name)
        try:
            with _open(content, kind, name) as image, _turn_for(image):
                return _pixels(image, name, max_side)
        except InputError:
            raise
        # Whatever a decoder raises for damaged data: RuntimeError, struct.error, MemoryError, ….
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"photo: cannot decode {name} ({kind + ': ' if kind else ''}{reason}); "
                "save it again as PNG or JPEG"
            ) from error


def size(source: str | Path | bytes) -> tuple[int, int]:
    """Height and width that `read` gives without `max_side`, from the header alone.

    Raises:
        InputError: as `read`, as far as the header shows it.
    """
    name = _name(source)
    with _opened(source) as content:
        kind = _checked_kind(content, name)
        try:
            with _open(content, kind, name) as image:
                turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
                return (image.width, image.height) if turned else (image.height, image.width)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"photo: cannot decode {name} ({error})") from error


def _name(source: str | Path | bytes) -> str:
    return "the upload" if isinstance(source, bytes) else repr(str(source))


def _opened(source: str | Path | bytes) -> Any:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        if not Path(source).is_file():
            raise InputError(f"photo: no such file {str(source)!r}")
        return Path(source).open("rb")
    except OSError as error:
        raise InputError(f"photo: cannot read {str(source)!r} ({error.strerror})") from error


def _checked_kind(content: Any, name: str) -> str:
    """The format by content; what is certainly no picture is refused."""
    head = content.read(formats.HEAD_BYTES)
    content.seek(0)
    if found := formats.describe(head):
        raise InputError(f"photo: {name} is {found}")
    kind = formats.sniff(head)
    if kind in formats.FFMPEG_FORMAT and kind != "GIF":
        raise InputError(f"photo: {name} is a video; export a frame of it as PNG or JPEG")
    return kind if kind in formats.PICTURES else ""


def _open(content: Any, kind: str, name: str) -> Image.Image:
    if kind == "HEIC":
        try:
            from pillow_heif import open_heif
        except ImportError as error:
            raise InputError(
                f"photo: cannot decode {name} (HEIC needs the package pillow-heif); convert it to "
                "JPEG or PNG, or install it: pip install 'dreampose[heif]'"
            ) from error
        return open_heif(content, convert_hdr_to_8bit=True).to_pillow()
    try:
        with warnings.catch_warnings():
            # Its own limit, an error, is what counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(content)
    except Image.UnidentifiedImageError as error:
        if kind in ("JXL", "JPEG 2000", "AVIF"):
            raise InputError(
                f"photo: cannot decode {name} ({kind} is not in this installation of Pillow); "
                "convert it to JPEG or PNG"
            ) from error
        raise InputError(
            f"photo: cannot decode {name} (no known format); use PNG, JPEG, WebP, AVIF or HEIC"
        ) from error


def _turn_for(image: Image.Image) -> Any:
    """A lock for a huge photo, nothing for others."""
    return _huge if image.width * image.height > HUGE_PIXELS else nullcontext()


def _pixels(image: Image.Image, name: str, max_side: int | None) -> Photo:
    profile = image.info.get("icc_profile")
    # An APP14 of Adobe is no colour space; the EXIF flag of cameras is.
    adobe = profile is None and _is_adobe_rgb(image)
    if max_side is not None and max(image.size) > max_side:
        image.draft(image.mode, (max_side, max_side))
        if image.mode == "P":
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    image = ImageOps.exif_transpose(image)
    pixels = np.array(_opaque(_eight_bits(image), profile, name).convert("RGB"))
    return tone.adobe_to_srgb(pixels) if adobe else pixels


def _eight_bits(image: Image.Image) -> Image.Image:
    """The same with 8 bits a channel; Pillow would cut off what is above 255."""
    if image.mode.startswith("I"):
        grey = np.asarray(image, np.float64) / 257
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image, np.float64))
        grey = values * (255 if values.max(initial=0) <= 1 else 1)
    else:
        return image
    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))


def _opaque(image: Image.Image, profile: bytes | None, name: str) -> Image.Image:
    """The picture in sRGB, on white."""
    if image.mode in ("P", "PA", "1"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA") else "RGBA")
        alpha = image.getchannel("A")
        image = image.convert("L" if image.mode == "LA" else "RGB")
    if image.mode == "LAB" and profile is None:
        image = _through(image, ImageCms.createProfile("LAB"))
    elif profile:
        image = _to_srgb(image, profile, name)
    if alpha is None:
        return image
    canvas = Image.new("RGB", image.size, (BACKGROUND,) * 3)
    canvas.paste(image.convert("RGB"), mask=alpha)
    return canvas


def _to_srgb(image: Image.Image, profile: bytes, name: str) -> Image.Image:
    """A picture whose colours are those of its profile; sRGB's own stay to the bit."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "RGB":
            sample = Image.fromarray(_LATTICE.reshape(1, -1, 3))
            change = np.asarray(_through(sample, source), np.int16) - np.asarray(sample, np.int16)
            if np.abs(change).max() <= 2:
                return image
        return _through(image, source)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        warnings.warn(
            f"photo: the colour profile of {name} cannot be used ({error}); its colours are taken "
            "as they are",
            PhotoWarning,
            stacklevel=2,
        )
        return image


def _through(image: Image.Image, source: Any) -> Image.Image:
    converted = ImageCms.profileToProfile(
        image,
        source,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return cast("Image.Image", converted)


def _is_adobe_rgb(image: Image.Image) -> bool:
    if image.mode != "RGB":
        return False
    exif = image.getexif()
    space = exif.get_ifd(0x8769).get(_COLOUR_SPACE, exif.get(_COLOUR_SPACE))
    index = exif.get_ifd(_INTEROPERABILITY).get(1, "") if space == 0xFFFF else ""
    return str(index).startswith("R03")
