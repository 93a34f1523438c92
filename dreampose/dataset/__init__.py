"""Training data: one Parquet row a clip, made by `encode_clip`, read by `Dataset`.

Knows nothing of training or Ray.
"""

from dreampose.dataset.reader import Dataset
from dreampose.dataset.rows import (
    ARRAYS,
    SCHEMA,
    encode_clip,
    encoders_fingerprint,
    error_row,
    working_size,
    write_rows,
)
from dreampose.dataset.stills import join_stills

__all__ = [
    "ARRAYS",
    "SCHEMA",
    "Dataset",
    "encode_clip",
    "encoders_fingerprint",
    "error_row",
    "join_stills",
    "working_size",
    "write_rows",
]
