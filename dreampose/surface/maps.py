"""Surface maps: the place on the body that each pixel shows."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from dreampose.errors import InputError
from dreampose.poses.parts import NUM_PARTS

KINDS = ("atlas", "parts", "painted")


@dataclass(frozen=True, kw_only=True)
class SurfaceMap:
    """Chart and place on the chart of every pixel of one picture.

    Maps of the same kind name the same places alike; maps of different kinds cannot be compared.

    Attributes:
        charts: number of the chart, 0 on the background.
        uv: place on the chart, in [0, 1]; 0 on the background.
        kind: 'atlas', one chart for the whole body; 'parts', DensePose's 24; 'painted', one for
            each painted limb, whose second coordinate runs around the limb and is periodic.
    """

    charts: UInt8[np.ndarray, "H W"]
    uv: Float[np.ndarray, "H W 2"]
    kind: str

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind

    @property
    def body(self) -> np.ndarray:
        """Where the body is: booleans (H W)."""
        return self.charts > 0

    @property
    def margin(self) -> np.ndarray:
        """Where the body may be, if the photo shows it there: booleans (H W)."""
        if self.kind != "painted":
            return np.zeros(self.charts.shape, bool)
        return self.charts > NUM_LIMBS


NUM_LIMBS = 17
"""Charts of painted limbs; those above are margins around them."""
AROUND = 0.75
"""Period of the second coordinate of painted charts; the rest of [0, 1] repeats it."""


def from_pose_maps(maps: Float[np.ndarray, "u H W"], *, is_atlas: bool = False) -> SurfaceMap:
    """The surface map that one frame's pose maps hold.

    Args:
        maps: U and V, or part / 24, U and V; 0 on the background.
        is_atlas: whether U and V are places on one chart of the whole body, as in the synthetic
            data, rather than on a chart for each part.

    Raises:
        InputError: the maps are U and V of parts, without the parts.
    """
    uv = np.ascontiguousarray(np.moveaxis(maps[-2:], 0, -1), dtype=np.float32)
    if is_atlas:
        body: np.ndarray = np.any(maps[-2:] > 0, axis=0)
        return SurfaceMap(charts=body.astype(np.uint8), uv=uv, kind="atlas")
    if len(maps) == 2:
        raise InputError(
            "pose maps must name body parts for the photo to be warped, got U and V alone: "
            "extract the poses with three channels (part, U, V) or with BlazePose"
        )
    charts = np.rint(maps[0] * NUM_PARTS).astype(np.uint8)
    return SurfaceMap(charts=charts, uv=uv, kind="parts")
