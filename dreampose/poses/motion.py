"""Motions: pose tracks with frame rate and origin, and their files.

Painted maps can be painted again from their joints at another size or position; other maps can only
be warped.
"""

import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8, UInt16

from dreampose.errors import InputError
from dreampose.io.files import new_file, open_arrays
from dreampose.poses.landmarks import NAMES
from dreampose.poses.paint import LEVELS, paint
from dreampose.poses.quality import Quality, assess

FORMAT = 1
"""Version of the file's layout."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """Poses of one person over time.

    Attributes:
        maps: U and V in [0, 1], 0 on background; with a first channel more, the part / 24.
        joints: x, y in pixels of the maps (the corner of the picture is 0, 0), depth in the same
            unit (away from the camera, 0 at the hips), visibility in [0, 1], or -1 for points
            that are hidden and left out of painted maps.
        confidence: of each frame in [0, 1]; 0 where the pose was filled in.
        fps: frames per second.
        source: the file it was made from.
        estimator: name of what made it.
        num_filled: frames without a pose of their own, filled from neighbours.
        joint_names: names of the `k` joints.
        painted: whether the maps are painted from the joints, so that they can be painted anew.
        places: U and V times 65535 where an estimator reads them: `maps` has 1/255 of them, which
            is too coarse to find a pixel by its place on the body.
        flags: of each frame, a bit for each of `quality.FLAGS`; empty for motions without them.
    """

    maps: Float[np.ndarray, "t u H W"]
    joints: Float[np.ndarray, "t k 4"]
    confidence: Float[np.ndarray, " t"]
    fps: float
    source: str = ""
    estimator: str = ""
    num_filled: int = 0
    joint_names: tuple[str, ...] = ()
    painted: bool = False
    places: UInt16[np.ndarray, "t 2 H W"] | None = None
    flags: UInt8[np.ndarray, " f"] = field(default_factory=lambda: np.zeros(0, np.uint8))

    @property
    def quality(self) -> Quality:
        """Summary of the flags: which frames were filled, put right or left out."""
        flags = self.flags if len(self.flags) else np.zeros(self.num_frames, np.uint8)
        return assess(flags)

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.maps)

    @property
    def num_channels(self) -> int:
        """Channels of the maps: 2 are U and V, 3 are part, U and V."""
        return self.maps.shape[1]

    @property
    def height(self) -> int:
        """Height of the maps in pixels."""
        return self.maps.shape[2]

    @property
    def width(self) -> int:
        """Width of the maps in pixels."""
        return self.maps.shape[3]

    @property
    def has_points(self) -> bool:
        """Whether the joints are the 33 body points of `landmarks`."""
        return self.joint_names == NAMES

    def between(self, start: int, stop: int) -> "Motion":
        """The frames `start` to `stop - 1`.

        Raises:
            InputError: the range is empty or reaches outside the motion.
        """
        if not 0 <= start < stop <= self.num_frames:
            raise InputError(
                f"frames must be a range A:B with 0 <= A < B <= {self.num_frames}, "
                f"got {start}:{stop}"
            )
        confidence = self.confidence[start:stop]
        return replace(
            self,
            maps=self.maps[start:stop],
            joints=self.joints[start:stop],
            confidence=confidence,
            num_filled=int((confidence == 0).sum()),
            places=None if self.places is None else self.places[start:stop],
            flags=self.flags[start:stop],
        )

    def resample(self, fps: float) -> "Motion":
        """The same movement at another frame rate; its length in seconds stays within a frame.

        Joints of painted motions are interpolated linearly and painted again; exact maps take
        the nearest frame. A frame made from a filled one counts as filled.

        Raises:
            InputError: fps is not positive.
        """
        if not fps > 0:
            raise InputError(f"fps must be positive, got {fps}")
        num_frames = max(1, round(self.num_frames * fps / self.fps))
        at = np.minimum(np.arange(num_frames) * self.fps / fps, self.num_frames - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, self.num_frames - 1)
        nearest = np.where(at - low < 0.5, low, high)
        confidence = self.confidence[nearest]
        joints, maps = self.joints[nearest], self.maps[nearest]
        if self.painted:
            share = (at - low)[:, None, None].astype(np.float32)
            joints = self.joints[low] * (1 - share) + self.joints[high] * share
            maps = paint(joints, self.height, self.width)
        return replace(
            self,
            maps=maps,
            joints=joints,
            confidence=confidence,
            fps=float(fps),
            num_filled=int((confidence == 0).sum()),
            places=None if self.places is None else self.places[nearest],
            flags=self.flags[nearest] if len(self.flags) else self.flags,
        )

    def save(self, path: str | Path) -> None:
        """Writes a compressed `.npz` without pickles; the file appears whole or not at all.

        Maps are stored in steps of 1/255.
        """
        values: dict[str, Any] = {
            "format": np.int32(FORMAT),
            "maps": np.round(self.maps * LEVELS).astype(np.uint8),
            "joints": self.joints.astype(np.float32),
            "confidence": self.confidence.astype(np.float32),
            "fps": np.float64(self.fps),
            "source": np.str_(self.source),
            "estimator": np.str_(self.estimator),
            "num_filled": np.int32(self.num_filled),
            "joint_names": np.array(self.joint_names, dtype=np.str_),
            "painted": np.bool_(self.painted),
            "flags": self.flags.astype(np.uint8),
        }
        if self.places is not None:
            values["places"] = self.places
        with new_file(path) as part, part.open("wb") as file:
            np.savez_compressed(file, **values)

    @classmethod
    def load(cls, path: str | Path) -> "Motion":
        """Reads what `save` wrote.

        Raises:
            InputError: the file is missing or is not a motion of this format.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"motion must be an existing file, got {str(path)!r}")
        try:
            with open_arrays(path) as file:
                if int(file["format"]) != FORMAT:
                    raise InputError(
                        f"motion must be of format {FORMAT}, got {int(file['format'])} "
                        f"in {str(path)!r}"
                    )
                return cls(
                    maps=file["maps"].astype(np.float32) / LEVELS,
                    joints=file["joints"],
                    confidence=file["confidence"],
                    fps=float(file["fps"]),
                    source=str(file["source"]),
                    estimator=str(file["estimator"]),
                    num_filled=int(file["num_filled"]),
                    joint_names=tuple(str(name) for name in file["joint_names"]),
                    painted=bool(file["painted"]),
                    places=file.get("places"),
                    flags=file["flags"] if "flags" in file else np.zeros(0, np.uint8),
                )
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"motion must be a file written by `python -m dreampose pose`, "
                f"got {str(path)!r} ({error})"
            ) from error
