"""Training data: one Parquet row per clip."""

from dreampose.data.dataset import Dataset
from dreampose.data.motions import extract_motion, working_size
from dreampose.data.photos import join_photos
from dreampose.data.schema import (
    ARRAYS,
    SCHEMA,
    encode_clip,
    encoders_fingerprint,
    error_row,
    write_rows,
)

__all__ = [
    "ARRAYS",
    "SCHEMA",
    "Dataset",
    "encode_clip",
    "encoders_fingerprint",
    "error_row",
    "extract_motion",
    "join_photos",
    "working_size",
    "write_rows",
]
