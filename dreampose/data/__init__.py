"""Training data: one Parquet row a clip, made by `encode_clip`, read by `Dataset`.

Knows nothing of training or Ray.
"""

from dreampose.data.dataset import Dataset
from dreampose.data.photos import join_stills
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
    "join_stills",
    "working_size",
    "write_rows",
]
