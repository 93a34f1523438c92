"""Resumable Ray Data source over a list of small rows.

Ray Data resumes only plans that start with a read, and block by block: here every row is a block.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from ray.data import DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.data.checkpoint import CheckpointConfig, IdColumnCheckpointManager


class Worklist(Datasource):
    """Rows of strings, each its own block."""

    def __init__(self, rows: Sequence[Mapping[str, str]]) -> None:
        super().__init__()
        self._tables = [pa.Table.from_pylist([dict(row)]) for row in rows]

    def estimate_inmemory_data_size(self) -> int | None:
        """Bytes of all rows."""
        return sum(table.nbytes for table in self._tables)

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 - Ray's interface
        per_task_row_limit: int | None = None,  # noqa: ARG002
        data_context: DataContext | None = None,  # noqa: ARG002
    ) -> list[ReadTask]:
        """A task a row."""
        return [
            ReadTask(
                lambda table=table: [table],
                BlockMetadata(
                    num_rows=1, size_bytes=table.nbytes, input_files=None, exec_stats=None
                ),
            )
            for table in self._tables
        ]


class Sweeper(IdColumnCheckpointManager):
    """Deletes partial files of a killed run, and filters nothing.

    The driver lists only unfinished rows, so the actor that Ray would start to drop the finished
    ones, and the CPU that it holds, are not needed.
    """

    def load_checkpoint(
        self, data_file_dir: str | None = None, data_file_filesystem: Any | None = None
    ) -> tuple[None, int]:
        """Sweeps; returns no ids to filter out."""
        super().load_checkpoint(data_file_dir, data_file_filesystem)
        return None, 0


def checkpointing(filesystem: Any, folder: str, *, id_column: str) -> CheckpointConfig:
    """Resume by the ids of committed rows in `folder`; see `committed`."""
    return CheckpointConfig(
        id_column=id_column,
        checkpoint_path=folder,
        override_filesystem=filesystem,
        delete_checkpoint_on_success=False,
        checkpoint_manager_cls=Sweeper,
    )
