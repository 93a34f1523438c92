"""Training data: one Parquet row per clip."""

from dreampose.data.dataset import Dataset
from dreampose.data.photos import join_photos
from dreampose.data.schema import (
    ARRAYS,
    SCHEMA,
    encode_clip,
    encoders_fingerprint,
    error_row,
    working_size,
    write_rows,
)

__all__ = [
    "ARRAYS",
    "SCHEMA",
    "Dataset",
    "encode_clip",
    "encoders_fingerprint",
    "error_row",
    "join_photos",
    "working_size",
    "write_rows",
]
