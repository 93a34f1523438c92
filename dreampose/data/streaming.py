"""Training data larger than the local cache, read clip by clip."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Shaped

from dreampose.config import Recipe
from dreampose.data.dataset import Dataset, parquet_files
from dreampose.data.schema import ARRAYS
from dreampose.errors import InputError

CACHE_BYTES = 32 * 2**30
"""Default bytes of arrays that a worker keeps locally; larger data are streamed."""
SHUFFLE_CLIPS = 8
"""Clips of a lane whose frames are shuffled together; see `windows.plan_streamed_epoch`."""


class StreamedDataset(Dataset):
    """Clips whose arrays are read from storage when they are needed.

    At most `memory_limit` bytes of arrays are in memory, those used last, and none on disk. Access
    is fast in the order of `windows.plan_streamed_epoch`, which needs few clips at a time.

    Attributes:
        memory_limit: bytes of arrays in memory.
        peak_bytes: most bytes of arrays that were in memory.
        num_reads: clips read from storage so far.
    """

    streamed = True

    def __init__(
        self,
        uri: str | Path,
        *,
        recipe: Recipe,
        columns: Sequence[str] = ("frames", "poses"),
        memory_limit: int = CACHE_BYTES,
    ) -> None:
        """Reads the clips' facts, without arrays.

        Args:
            uri: a folder or file, as a path or the URI of any pyarrow filesystem.
            recipe: of the model; the data must have been preprocessed for it.
            columns: array columns to read.
            memory_limit: bytes of arrays kept in memory.

        Raises:
            InputError: as `Dataset`; or one clip is larger than `memory_limit`.
        """
        self.memory_limit = memory_limit
        self.peak_bytes = 0
        self.num_reads = 0
        self._lock = threading.Lock()
        self._cached: OrderedDict[int, dict[str, np.ndarray]] = OrderedDict()
        self._cached_bytes = 0
        super().__init__(uri, recipe=recipe, columns=columns)
        self._filesystem, _ = parquet_files(self.uri)
        self.clip_bytes = max(self._bytes_of(clip) for clip in range(len(self.clips)))
        self.require_clips(1)

    def require_clips(self, number: int) -> None:
        """Checks that so many of the largest clips fit into memory.

        Raises:
            InputError: they do not.
        """
        if number * self.clip_bytes > self.memory_limit:
            raise InputError(
                f"data cache must hold {number} clips of {self.clip_bytes / 1e6:,.1f} MB, got "
                f"{self.memory_limit / 1e6:,.1f} MB: enlarge it, or cut the videos into shorter "
                "ones"
            )

    def shape(self, clip: int, name: str) -> tuple[int, ...]:
        """Shape of an array column of a clip, without reading it."""
        return tuple(self.clips[clip][f"{name}_shape"])

    def array(self, clip: int, name: str) -> Shaped[np.ndarray, "..."]:
        """Array column of a clip; see `ARRAYS` for the shapes."""
        with self._lock:
            if clip in self._cached:
                self._cached.move_to_end(clip)
            else:
                self._read(clip)
            return self._cached[clip][name]

    def _read(self, clip: int) -> None:
        # Room first, so that the bound holds while the clip is read.
        size = self._bytes_of(clip)
        while self._cached and self._cached_bytes + size > self.memory_limit:
            _, arrays = self._cached.popitem(last=False)
            self._cached_bytes -= sum(values.nbytes for values in arrays.values())
        file, group, index = self.clips[clip]["location"]
        with self._filesystem.open_input_file(file) as source:
            table = pq.ParquetFile(source).read_row_group(group, columns=list(self.columns))
        arrays: dict[str, np.ndarray] = {}
        for name in self.columns:
            buffer = table[name][index].as_buffer()
            values = np.frombuffer(buffer, ARRAYS[name]).reshape(self.shape(clip, name))
            # A view of a group with several clips would keep all of them.
            arrays[name] = values if table.num_rows == 1 else values.copy()
        self._cached[clip] = arrays
        self._cached_bytes += size
        self.num_reads += 1
        self.peak_bytes = max(self.peak_bytes, self._cached_bytes)

    def _bytes_of(self, clip: int) -> int:
        return array_bytes(self.clips[clip], self.columns)

    def _read_file(self, file: pq.ParquetFile, path: str) -> list[dict[str, Any]]:
        columns = [*self.fact_columns(file), *(f"{name}_shape" for name in self.columns)]
        rows: list[dict[str, Any]] = []
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns)
            for index, row in enumerate(table.to_pylist()):
                if row["error"]:
                    self.num_errors += 1
                    continue
                self.check_row(row)
                for name in self.columns:
                    if row[f"{name}_shape"] is None:
                        raise self.missing_array(name, row["clip_id"])
                rows.append({**row, "location": (path, group, index)})
        return rows


def array_bytes(row: dict[str, Any], columns: Sequence[str]) -> int:
    """Bytes of array columns of a row, from their shapes."""
    return sum(
        int(np.prod(row[f"{name}_shape"])) * ARRAYS[name].itemsize
        for name in columns
        if row.get(f"{name}_shape") is not None
    )


def data_bytes(uri: str | Path, columns: Sequence[str]) -> int:
    """Bytes of array columns of a data folder, from the files' metadata.

    Raises:
        InputError: there is no data.
    """
    filesystem, files = parquet_files(str(uri))
    total = 0
    for file in files:
        with filesystem.open_input_file(file) as source:
            metadata = pq.ParquetFile(source).metadata
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            for index in range(row_group.num_columns):
                column = row_group.column(index)
                if column.path_in_schema in columns:
                    total += column.total_uncompressed_size
    return total


def open_dataset(
    uri: str | Path,
    *,
    recipe: Recipe,
    columns: Sequence[str],
    cache_bytes: int = CACHE_BYTES,
) -> Dataset:
    """The clips of a data folder, in local memory and disk if they fit there, else streamed.

    Args:
        uri: a folder or file, as a path or the URI of any pyarrow filesystem.
        recipe: of the model.
        columns: array columns to read.
        cache_bytes: bytes of arrays kept locally.

    Raises:
        InputError: as the data sets.
    """
    if data_bytes(uri, columns) <= cache_bytes:
        return Dataset(uri, recipe=recipe, columns=columns)
    return StreamedDataset(uri, recipe=recipe, columns=columns, memory_limit=cache_bytes)
