"""The functions of a SCORE job: `check` before the ranks start, `score` on every rank, `finish` after them.

Rank r of n scores the partitions r, r + n, … of the table that no attempt has finished. `finish` commits the
predictions, and then gives them to the gateways.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pyarrow as pa

from flywheel_common.scoring.rules import ScoringRules, scoring_rules
from flywheel_job import objects
from flywheel_job.artifacts import MODEL
from flywheel_job.batch_scoring.cache import PredictionCache
from flywheel_job.batch_scoring.model import ReleaseModel
from flywheel_job.batch_scoring.output import Output
from flywheel_job.batch_scoring.partitions import Partition, batches_of, partitions_of, schema_of
from flywheel_job.batch_scoring.predictions import prediction_schema, predictions
from flywheel_job.batch_scoring.prefetch import prefetched
from flywheel_job.batch_scoring.spec import (
    CACHE_URL,
    REPORT,
    ROWS,
    ROWS_CACHED,
    ROWS_DONE,
    ROWS_RESUMED,
    ROWS_TOTAL,
    ScoringParams,
)
from flywheel_job.context import Context
from flywheel_job.errors import CacheUnavailable, UnusableModel, UnusableTable
from flywheel_protos.registry.v1 import model_pb2

FILL_ROWS = 20_000


class Scoring:
    """One rank's view of a SCORE job."""

    def __init__(self, ctx: Context) -> None:
        self._ctx, self._store = ctx, ctx.store
        self.params = ctx.parse_params(ScoringParams)
        self.output = Output(ctx.store, self.params.predictions_uri)
        self.partitions = partitions_of(ctx.store, ctx.data_set(ROWS).uri, self.params.partition_rows)

    @cached_property
    def rules(self) -> ScoringRules:
        """What the release says. Raises UnusableModel."""
        content = self._content(self.params.release_uri, self.params.release_sha256)
        message = model_pb2.ServingRelease.FromString(content)
        try:
            return scoring_rules(message.release, message.model_version.signature)
        except ValueError as error:
            raise UnusableModel(f"{self.params.release} cannot be scored with: {error}.") from error

    @property
    def rows(self) -> int:
        return sum(partition.rows for partition in self.partitions)

    @property
    def threads(self) -> int:
        """The processors of the rank."""
        return max(1, int(self._ctx.spec.resources.cpus))

    def check(self) -> None:
        """Raises UnusableTable for a table without rows or with missing columns."""
        if not self.partitions:
            raise UnusableTable("The table has no rows.")
        has = set(schema_of(self._store, self.partitions[0]).names)
        inputs = [one.name for one in self.rules.signature.inputs]
        needed = [*self.params.carried, *inputs, *self.rules.threshold_keys]
        missing = [name for name in needed if name not in has]
        if missing:
            raise UnusableTable(f"The table with its features has no column {missing[0]!r}.")

    @contextmanager
    def model(self) -> Iterator[ReleaseModel]:
        """The model, whose files are in a folder of their own meanwhile."""
        with tempfile.TemporaryDirectory(prefix="flywheel-score-") as folder:
            for file in self.params.files:
                path = Path(folder, file.name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self._content(file.uri, file.sha256))
            yield ReleaseModel(self.rules, str(Path(folder, MODEL)), threads=self.threads)

    def score_partitions(
        self, model: ReleaseModel, partitions: Sequence[Partition]
    ) -> Generator[Partition, None, None]:
        """Scores partitions in their order, and yields each one when it is finished."""
        output = self.rules.signature.output
        # Reading, scoring and writing overlap, also of one partition and the next. Only one thread has many
        # short calls: threads that take the interpreter's lock in turns wake each other for each call.
        with (
            prefetched(self._read(partitions, model.batch_rows)) as read,
            prefetched(
                (one, batch, model.answers(batch, model.features(batch))) for one, batch in read
            ) as scored,
        ):
            for partition, group in groupby(scored, itemgetter(0)):
                stored = schema_of(self._store, partition)
                schema = prediction_schema(output, [stored.field(name) for name in self.params.carried])
                made = (predictions(output, schema, batch, answers) for _, batch, answers in group)
                self.output.write(partition, schema, made)
                yield partition

    def _read(self, partitions: Sequence[Partition], rows: int) -> Iterator[tuple[Partition, pa.RecordBatch]]:
        for partition in partitions:
            stored = schema_of(self._store, partition).names
            columns = [one.name for one in self.rules.signature.inputs]
            columns += [name for name in self.params.carried if name in stored]
            columns += self.rules.threshold_keys
            names = list(dict.fromkeys(columns))
            for batch in batches_of(self._store, partition, names, rows, threads=self.threads):
                yield partition, batch

    def _content(self, uri: str, sha256: str) -> bytes:
        content = objects.read(self._store, uri)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise UnusableModel(f"The bytes at {uri} do not have the digest {sha256}.")
        return content


def check(ctx: Context) -> None:
    """Refuses a job that cannot succeed, before any worker starts."""
    scoring = Scoring(ctx)
    scoring.check()
    if scoring.params.cache_ttl_seconds and not os.environ.get(CACHE_URL):
        raise CacheUnavailable("The job has no address of the Redis of the gateways.")


def score(ctx: Context) -> None:
    """Scores the partitions of this rank that are not finished."""
    scoring = Scoring(ctx)
    ctx.note("predictions_uri", scoring.params.predictions_uri)
    ctx.log({ROWS_TOTAL: scoring.rows}, scoring.rows)
    if scoring.output.committed() is not None:
        return
    finished = set(scoring.output.finished())
    done = sum(one.rows for one in scoring.partitions if one.number in finished)
    ctx.log({ROWS_RESUMED: done}, done)
    own = [one for one in scoring.partitions[ctx.rank :: ctx.world_size] if one.number not in finished]
    with scoring.model() as model, closing(scoring.score_partitions(model, own)) as scored:
        for partition in scored:
            others = set(scoring.output.finished()) if ctx.world_size > 1 else finished
            finished = finished | others | {partition.number}
            done = sum(one.rows for one in scoring.partitions if one.number in finished)
            ctx.log({ROWS_DONE: done}, done)


def finish(ctx: Context) -> None:
    """Commits the predictions, and fills the cache of the gateways from them."""
    scoring = Scoring(ctx)
    params = scoring.params
    summary = {
        "release": params.release,
        "join_keys": params.join_keys,
        "predictions_uri": params.predictions_uri,
    }
    content = scoring.output.committed() or scoring.output.commit(scoring.partitions, summary)
    scoring.output.remove_temporary()
    report = dict(content)
    if params.cache_ttl_seconds:
        report["cached_rows"] = _fill_cache(ctx, scoring, content["files"])
    ctx.artifact(REPORT, json.dumps(report, sort_keys=True).encode())


def _fill_cache(ctx: Context, scoring: Scoring, files: list[str]) -> int:
    params = scoring.params
    output = scoring.rules.signature.output
    cache = PredictionCache(os.environ[CACHE_URL], params.model, output, params.cache_ttl_seconds)
    filled = 0
    try:
        columns = cache.columns(params.join_keys)
        for file in files:
            for batch in scoring.output.batches(file, columns, FILL_ROWS):
                filled += cache.fill(params.join_keys, batch)
            ctx.log({ROWS_CACHED: filled}, filled)
    finally:
        cache.close()
    return filled
