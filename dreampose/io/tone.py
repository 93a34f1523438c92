"""High dynamic range and wide gamut pixels to sRGB.

Light is measured in units of reference white, 203 cd/m2 (ITU-R BT.2408): 58% of PQ's signal and
75% of HLG's. HLG is decoded scene-referred, without a system gamma.
"""

import functools
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8, UInt16

PQ, HLG = 16, 18
"""Transfer characteristics of ITU-T H.273: SMPTE ST 2084, and ARIB STD-B67."""

REFERENCE_WHITE = 203.0
"""cd/m2 that become white (ITU-R BT.2408)."""
PEAK = 1000.0
"""cd/m2 that become white's limit: brighter light is clipped."""
KNEE = 0.9
"""Light up to this share of white stays as it is; the rest is rolled off to 1."""

_CHROMATICITIES = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), (0.3127, 0.3290)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), (0.3127, 0.3290)),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3127, 0.3290)),
}
"""Red, green, blue and white of the colour primaries of ITU-T H.273: BT.709, BT.2020, DCI-P3 and
Display P3. Others are taken for BT.709, which they hardly differ from."""
ADOBE_RGB = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060), (0.3127, 0.3290))
_BAND = 2**18
"""Pixels converted together."""

Matrix = Float[np.ndarray, "3 3"]


def is_plain(transfer: int, primaries: int) -> bool:
    """Whether pixels of this transfer and these primaries are taken for sRGB as they are."""
    return transfer not in (PQ, HLG) and (primaries == 1 or primaries not in _CHROMATICITIES)


def name(transfer: int) -> str:
    """What a transfer is called in messages."""
    return {PQ: "HDR (PQ)", HLG: "HDR (HLG)"}.get(transfer, "wide gamut")


def to_srgb(
    pixels: UInt16[np.ndarray, "H W 3"], transfer: int, primaries: int
) -> UInt8[np.ndarray, "H W 3"]:
    """Converts full-range R'G'B' to sRGB.

    Light above `KNEE` is compressed by the Möbius curve of FFmpeg's `tonemap` filter, by the same
    factor for the three channels, so that hues stay; colours outside of BT.709 are clipped.

    Args:
        pixels: 0 to 65535.
        transfer: of ITU-T H.273; others than PQ and HLG are taken for sRGB's.
        primaries: of ITU-T H.273.
    """
    return _convert(
        pixels,
        _linear_light(transfer),
        _to_bt709(_CHROMATICITIES.get(primaries, _CHROMATICITIES[1])),
        peak=float(_linear_light(transfer)[-1]),
    )


def adobe_to_srgb(pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Converts Adobe RGB (1998), gamma 2.2, to sRGB."""
    light = (np.arange(256) / 255) ** (563 / 256)
    return _convert(pixels, light.astype(np.float32), _to_bt709(ADOBE_RGB), peak=1.0)


def _convert(
    pixels: Any, light: Float[np.ndarray, " n"], matrix: Matrix, *, peak: float
) -> UInt8[np.ndarray, "H W 3"]:
    height, width = pixels.shape[:2]
    result = np.empty((height, width, 3), np.uint8)
    codes = _srgb_codes()
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        linear = cv2.transform(light[pixels[top : top + rows]], matrix)
        if peak > 1:
            linear *= _gain(linear.max(axis=-1), min(peak, PEAK / REFERENCE_WHITE))[..., None]
        index = np.clip(linear, 0, 1) * np.float32(len(codes) - 1)
        result[top : top + rows] = codes[(index + np.float32(0.5)).astype(np.uint16)]
    return result


def _gain(light: Float[np.ndarray, "H W"], peak: float) -> Float[np.ndarray, "H W"]:
    """What light is multiplied with: the Möbius curve, 1 up to the knee and `peak` to 1."""
    gain = np.ones_like(light)
    bright = light > KNEE
    x = light[bright].clip(max=peak)
    a = -(KNEE**2) * (peak - 1) / (KNEE**2 - 2 * KNEE + peak)
    b = (KNEE**2 - 2 * KNEE * peak + peak) / (peak - 1)
    curve = (b**2 + 2 * b * KNEE + KNEE**2) / (b - a) * (x + a) / (x + b)
    gain[bright] = curve / light[bright]
    return gain


@functools.cache
def _linear_light(transfer: int) -> Float[np.ndarray, " n"]:
    """Light of every 16-bit signal, 1 at reference white."""
    signal = np.arange(65536) / 65535
    if transfer == PQ:
        power = signal ** (32 / 2523)
        base = np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)
        light = base ** (16384 / 2610) * 10_000 / REFERENCE_WHITE
    elif transfer == HLG:
        light = _hlg(signal) / _hlg(np.array(0.75))
    else:
        light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


def _hlg(signal: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Scene light of an HLG signal (ITU-R BT.2100)."""
    bright = (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return np.where(signal <= 0.5, signal**2 / 3, bright)


@functools.cache
def _srgb_codes() -> UInt8[np.ndarray, " n"]:
    """SRGB's 8-bit code of every 16-bit step of light."""
    light = np.arange(65536) / 65535
    code = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (code * 255).round().astype(np.uint8)


@functools.cache
def _to_bt709(chromaticities: tuple[tuple[float, float], ...]) -> Matrix:
    """Linear R, G, B of these primaries to those of BT.709; white stays white."""
    matrix = np.linalg.inv(_to_xyz(_CHROMATICITIES[1])) @ _to_xyz(chromaticities)
    return (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)


def _to_xyz(chromaticities: tuple[tuple[float, float], ...]) -> Matrix:
    red, green, blue, white = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in chromaticities)
    primaries = np.stack([red, green, blue], axis=1)
    return primaries * np.linalg.solve(primaries, white)
