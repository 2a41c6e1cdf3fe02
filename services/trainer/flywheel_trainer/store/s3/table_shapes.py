"""`Tables` of users as Parquet files on S3.

What reads them is imported on use: pyarrow and its client of S3 take 50 MiB, and pandas, which it imports,
as much again. Few services need them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from flywheel_common.storage.errors import S3Refused, S3Unavailable
from flywheel_trainer.jobs.errors import UnknownTable, WrongTable
from flywheel_trainer.jobs.scoring_ports import TableShape

if TYPE_CHECKING:
    from pyarrow import fs


class ParquetShapes:
    """`Tables` over an object store."""

    def __init__(self, open_store: Callable[[], fs.FileSystem]) -> None:
        self._open_store = open_store

    async def shape(self, uri: str) -> TableShape:
        return await asyncio.to_thread(self._shape, uri)

    def _shape(self, uri: str) -> TableShape:
        import pyarrow as pa
        import pyarrow.dataset
        from pyarrow import fs

        from flywheel_job import objects

        files = self._open_store()
        try:
            path = objects.path_of(uri).rstrip("/")
            if files.get_file_info(path).type == fs.FileType.NotFound:
                raise UnknownTable(f"There is no table at {uri}.")
            table = pyarrow.dataset.dataset(path, filesystem=files, format="parquet", partitioning="hive")
            if not table.files:
                raise UnknownTable(f"There is no Parquet file at {uri}.")
            return TableShape(tuple(table.schema.names), table.count_rows())
        except FileNotFoundError as error:
            raise UnknownTable(f"There is no table at {uri}.") from error
        except (pa.ArrowInvalid, ValueError) as error:
            raise WrongTable(f"{uri} is not a table of Parquet files: {error}") from error
        except PermissionError as error:
            raise S3Refused(f"The trainer may not read {uri}.") from error
        except OSError as error:
            if "ACCESS_DENIED" in str(error) or "403" in str(error):
                raise S3Refused(f"The trainer may not read {uri}.") from error
            raise S3Unavailable(f"The table at {uri} cannot be read now: {error}") from error
