"""SCORE jobs without a cluster: the files of a release and of a table with its features, and the launch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from flywheel_job import objects
from flywheel_job.batch_scoring.spec import CHECK, FINISH, ROWS, SCORE, ModelFile, ScoringParams
from flywheel_job.launch import DataSet, LaunchSpec
from tests.support.training_job import launch_spec

PREDICTIONS = "s3://b/predictions/p/j/"
TABLE = "s3://b/table/"


def scoring_job(
    store: fs.FileSystem,
    release: Any,
    files: Mapping[str, bytes],
    *,
    join_keys: Sequence[str] = ("carrier",),
    carried: Sequence[str] = ("carrier", "event_timestamp"),
    **params: Any,
) -> LaunchSpec:
    """A job that scores TABLE with a ServingRelease whose files have these contents."""
    content = release.SerializeToString(deterministic=True)
    objects.write(store, "s3://b/release", content)
    stored = []
    for name, data in files.items():
        objects.write(store, f"s3://b/files/{name}", data)
        stored.append(ModelFile(name, f"s3://b/files/{name}", hashlib.sha256(data).hexdigest()))
    scoring = ScoringParams(
        release=release.release.name,
        model=release.release.name.rpartition("/releases/")[0],
        release_uri="s3://b/release",
        release_sha256=hashlib.sha256(content).hexdigest(),
        files=stored,
        join_keys=list(join_keys),
        carried=list(carried),
        predictions_uri=PREDICTIONS,
        **params,
    )
    return launch_spec(SCORE, check=CHECK, export=FINISH, params=asdict(scoring), data={ROWS: DataSet(TABLE)})


def write_table(store: fs.FileSystem, *parts: pa.Table, row_group_rows: int = 1 << 20) -> None:
    """Write TABLE, one file per part."""
    objects.create_folder(store, TABLE)
    for number, part in enumerate(parts):
        with store.open_output_stream(objects.path_of(f"{TABLE}{number}.parquet")) as stream:
            pq.write_table(part, stream, row_group_size=row_group_rows)


def read_predictions(store: fs.FileSystem) -> list[dict[str, Any]]:
    """The rows of the predictions, in the order of their files."""
    paths = objects.files_under(store, PREDICTIONS, ".parquet")
    tables = [pq.read_table(store.open_input_file(path)) for path in paths]
    return list(pa.concat_tables(tables).to_pylist()) if tables else []
