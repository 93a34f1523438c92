"""Kinds of files by their first bytes."""

HEAD_BYTES = 512
"""Bytes that `sniff` and `describe` want at most."""

PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "HEIC", "AVIF", "JXL", "JPEG 2000")
"""Kinds that hold one picture; a GIF may hold several frames."""

FFMPEG_FORMAT = {
    "mp4": "mov",
    "webm": "matroska",
    "avi": "avi",
    "ts": "mpegts",
    "mpeg": "mpeg",
    "flv": "flv",
    "asf": "asf",
    "ogg": "ogg",
    "GIF": "gif",
}
"""FFmpeg's demuxer of each kind of video. With it named, FFmpeg never takes a file for a playlist,
which could make it open other files."""

_STARTS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"\xff\x0a": "JXL",
    b"\x00\x00\x00\x0cJXL ": "JXL",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\x1a\x45\xdf\xa3": "webm",
    b"\x00\x00\x01\xba": "mpeg",
    b"FLV\x01": "flv",
    b"0&\xb2u\x8ef\xcf\x11": "asf",
    b"OggS": "ogg",
    b"PK\x03\x04": "npz",
    b"PAR1": "parquet",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "xls",
    b"%PDF": "pdf",
}
_RIFF = {b"WEBP": "WEBP", b"AVI ": "avi"}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_QUICKTIME = {b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
"""First boxes of QuickTime files from before there was `ftyp`."""


def sniff(head: bytes) -> str:
    """What a file is by its first bytes: 'PNG', 'JPEG', 'HEIC', 'mp4', 'npz', …; '' if unknown.

    'mp4' is every file of the MP4 and QuickTime family, 'webm' Matroska as well, 'npz' any ZIP.

    Args:
        head: at least the first 32 bytes; brands further on are seen in up to `HEAD_BYTES`.
    """
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12], "")
    box = head[4:8]
    if box == b"ftyp":
        return _brand(head)
    size = int.from_bytes(head[:4], "big")
    if box in _QUICKTIME and (size in (0, 1) or size >= 8):
        return "mp4"
    if head[:1] == b"\x47" and (len(head) <= 188 or head[188:189] == b"\x47"):
        return "ts"
    return ""


def describe(head: bytes) -> str:
    """What a file is, in words for a message, with what to do; '' if unknown or as it should be."""
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the file; fetch it with `git lfs pull`"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML) instead of the file; download the file itself"
    if text.startswith((b"<?xml", b"<error")):
        return "an XML answer instead of the file; download the file itself"
    if not head.strip(b"\0"):
        return "zeros alone; copy or download the file again"
    return ""


def _brand(head: bytes) -> str:
    """The kind of a file that begins with an `ftyp` box."""
    length = min(int.from_bytes(head[:4], "big") or len(head), len(head))
    brands = {head[8:12]} | {head[at : at + 4] for at in range(16, length - 3, 4)}
    if head[8:12] in (b"avif", b"avis") or (head[8:12] in _HEIC and brands & {b"avif", b"avis"}):
        return "AVIF"
    return "HEIC" if head[8:12] in _HEIC else "mp4"
