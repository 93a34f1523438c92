"""Reader of preprocessed clips in Parquet files."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64, Shaped, UInt8
from pyarrow import fs as pafs

from dreampose.config import Recipe
from dreampose.data import augmentation
from dreampose.data.schema import ARRAYS, SCHEMA
from dreampose.data.windows import windows
from dreampose.errors import InputError


class Dataset:
    """Clips of a folder of Parquet files, sorted by id.

    Duplicate rows count once; clips with the same id and different pose estimators are separate.
    Arrays are kept in memory up to `memory_limit` bytes; the rest is written to a temporary file
    and memory-mapped for random access.

    Attributes:
        clips: columns of each clip.
        targets: clip index and frame index of each target frame.
        num_frames_of: number of frames of each clip.
        num_errors: rows of rejected videos.
        fingerprint: of the model that encoded the clips.
        streamed: whether arrays are read when they are needed, see `StreamedDataset`.
    """

    streamed = False

    def __init__(
        self,
        uri: str | Path,
        *,
        recipe: Recipe,
        columns: Sequence[str] = ("frames", "poses"),
        memory_limit: int = 8 * 2**30,
    ) -> None:
        """Reads the clips.

        Args:
            uri: a folder or file, as a path or the URI of any pyarrow filesystem.
            recipe: of the model; the data must have been preprocessed for it.
            columns: array columns to read.
            memory_limit: bytes of arrays kept in memory.

        Raises:
            InputError: there is no usable clip, a column is missing, or the data was preprocessed
                for another recipe or by different models.
        """
        self.uri = str(uri)
        self.recipe = recipe
        self.columns = tuple(columns)
        self.num_errors = 0
        self._memory_left = memory_limit
        self._spool: Any = None
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        filesystem, files = parquet_files(self.uri)
        for file in files:
            with filesystem.open_input_file(file) as source:
                for row in self._read_file(pq.ParquetFile(source), file):
                    rows.setdefault((row["clip_id"], row.get("estimator") or ""), row)
        self.clips = [rows[key] for key in sorted(rows)]
        if not self.clips:
            raise InputError(
                f"data must have at least one usable clip, got {self.num_errors} rejected ones in "
                f"{self.uri!r}"
            )
        fingerprints = {str(clip["model_fingerprint"]) for clip in self.clips}
        if "latents" in self.columns and len(fingerprints) > 1:
            raise InputError(
                "data must be encoded by one model, got rows of models "
                f"{', '.join(sorted(fingerprints))} in {self.uri!r}"
            )
        self.fingerprint = fingerprints.pop()
        self.num_frames_of: Int64[np.ndarray, " clips"] = np.array(
            [clip["num_frames"] for clip in self.clips]
        )
        self.targets: Int64[np.ndarray, "n 2"] = np.concatenate(
            [
                np.stack([np.full(count, index), np.arange(count)], axis=1)
                for index, count in enumerate(self.num_frames_of)
            ]
        )

    def __len__(self) -> int:
        """Number of target frames."""
        return len(self.targets)

    @property
    def buckets(self) -> Int64[np.ndarray, " n"]:
        """Index of the frame size of each target in the recipe's `frame_sizes`."""
        known = self.recipe.frame_sizes
        sizes = np.array([known.index(self.size_of(clip)) for clip in range(len(self.clips))])
        return sizes[self.targets[:, 0]]

    def size_of(self, clip: int) -> tuple[int, int]:
        """Height and width of a clip's frames."""
        return self.clips[clip]["height"], self.clips[clip]["width"]

    @property
    def subjects(self) -> list[str]:
        """Subject of each clip."""
        return [clip["subject"] for clip in self.clips]

    def array(self, clip: int, name: str) -> Shaped[np.ndarray, "..."]:
        """Array column of a clip; see `ARRAYS` for the shapes."""
        return self.clips[clip][name]

    def shape(self, clip: int, name: str) -> tuple[int, ...]:
        """Shape of an array column of a clip."""
        return self.array(clip, name).shape

    def window(self, clip: int, frame: int) -> Int64[np.ndarray, " p"]:
        """Frame indices of the pose window of a frame; for photos, the frame itself repeated."""
        if not self.clips[clip]["fps"] > 0:
            return np.full(self.recipe.num_poses, frame)
        return windows(int(self.num_frames_of[clip]), self.recipe.num_poses)[frame]

    def photo(
        self, clip: int, frame: int, *, view: int | None = None
    ) -> UInt8[np.ndarray, "H W 3"]:
        """Frame of a clip, or one of its views.

        Args:
            clip: index of the clip.
            frame: index of the frame.
            view: index of a crop or recoloured version, resized to the frame's size; it needs the
                columns `crops` and `colours`. None is the whole frame.
        """
        frames = self.array(clip, "frames")[frame : frame + 1]
        if view is None:
            return frames[0]
        box, order = self.array(clip, "crops")[view], self.array(clip, "colours")[view]
        return augmentation.crop_frames(frames, box, frames.shape[1], frames.shape[2])[0][
            ..., order
        ]

    def fact_columns(self, file: pq.ParquetFile) -> list[str]:
        """Columns of a file that are no arrays.

        Raises:
            InputError: the file lacks a needed column.
        """
        present = set(file.schema_arrow.names)
        missing = {"clip_id", "recipe", "error", *self.columns} - present
        if missing:
            raise InputError(
                f"data must have the columns {', '.join(sorted(missing))}, got a Parquet file "
                f"without them in {self.uri!r}: preprocess the videos again"
            )
        names = [name for name in SCHEMA.names if name.removesuffix("_shape") not in ARRAYS]
        return [name for name in names if name in present]

    def missing_array(self, name: str, clip_id: str) -> InputError:
        """The error for a clip without an array column."""
        return InputError(
            f"data must have {name}, got none for clip {clip_id!r} in {self.uri!r}: "
            "preprocess it with the model"
        )

    def _read_file(
        self,
        file: pq.ParquetFile,
        path: str,  # noqa: ARG002 - for subclasses
    ) -> list[dict[str, Any]]:
        facts = self.fact_columns(file)
        wanted = [*facts, *self.columns, *(f"{name}_shape" for name in self.columns)]
        rows: list[dict[str, Any]] = []
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=wanted)
            for index in range(table.num_rows):
                row = {name: table[name][index].as_py() for name in facts}
                if row["error"]:
                    self.num_errors += 1
                    continue
                self.check_row(row)
                for name in self.columns:
                    row[name] = self._unpack(name, table, index, row["clip_id"])
                rows.append(row)
        return rows

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Checks that a row was preprocessed for the recipe.

        Raises:
            InputError: it was not.
        """
        recipe, size = self.recipe, (row["height"], row["width"])
        if row["recipe"] != recipe.name or size not in recipe.frame_sizes:
            sizes = " or ".join(f"{height}x{width}" for height, width in recipe.frame_sizes)
            raise InputError(
                f"data must be preprocessed for the model's recipe {recipe.name!r} at {sizes}, "
                f"got data for {row['recipe']!r} at {size[0]}x{size[1]} in {self.uri!r}"
            )

    def _unpack(self, name: str, table: pa.Table, index: int, clip_id: str) -> np.ndarray:
        cell = table[name][index]
        if not cell.is_valid:
            raise self.missing_array(name, clip_id)
        shape = table[f"{name}_shape"][index].as_py()
        values = np.frombuffer(cell.as_buffer(), ARRAYS[name]).reshape(shape)
        if values.nbytes <= self._memory_left:
            self._memory_left -= values.nbytes
            return values.copy()
        if self._spool is None:
            self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - used as long as the data set
        offset = self._spool.seek(0, 2)
        self._spool.write(values.tobytes())
        self._spool.flush()
        return np.memmap(self._spool, ARRAYS[name], "r", offset, tuple(shape))


def is_clip_file(path: str) -> bool:
    """Whether a path in a data folder is a Parquet file of clips.

    As usual for Parquet data sets, names that begin with an underscore are not data; `_done` lists
    the preprocessed videos.
    """
    parts = PurePosixPath(path).parts
    return path.endswith(".parquet") and not any(part.startswith("_") for part in parts)


def parquet_files(uri: str) -> tuple[pafs.FileSystem, list[str]]:
    """Filesystem and sorted paths of the clip files of a data folder.

    Raises:
        InputError: there are none, or storage cannot be reached.
    """
    try:
        if "://" in uri:
            filesystem, path = pafs.FileSystem.from_uri(uri)
        else:
            filesystem, path = pafs.LocalFileSystem(), str(Path(uri).resolve())
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.File:
            return filesystem, [path]
        listed = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"data must be a folder of Parquet files, got {uri!r} ({error})"
        ) from error
    files = sorted(file.path for file in listed if is_clip_file(file.path.removeprefix(path)))
    if not files:
        raise InputError(f"data must be a folder of Parquet files, got none in {uri!r}")
    return filesystem, files
