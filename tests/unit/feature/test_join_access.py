"""What the processes of a join on a cluster may do on the object store."""

from __future__ import annotations

from typing import Any

import pytest

from flywheel_common.granted.access import Access, ObjectMethod, ObjectRequest
from flywheel_common.granted.errors import ForeignObject
from flywheel_feature.fakes.partitions import MemoryPartitions
from flywheel_feature.fakes.tables import MemoryTables
from flywheel_feature.jobs.progress import JobProgress
from flywheel_feature.offline.partitioned.access import access_of_join
from flywheel_feature.offline.partitioned.spec import SPEC, PartitionSpec
from flywheel_feature.offline.ports import Workspace
from flywheel_feature.offline.unfinished import work_name
from flywheel_feature.tables.ports import Tables
from tests.support.builders.jobs import RecordingJob
from tests.support.builders.partitioned_joins import JoinInputs, request

FOLDER = "s3://memory/joins/feature-p-one"


class Kept(MemoryPartitions):
    """An engine that keeps the spec of a join, and every address that its tasks use."""

    def __init__(self, tables: MemoryTables) -> None:
        super().__init__(tables)
        self.spec: PartitionSpec | None = None

    async def run(self, name: str, job: JobProgress) -> None:
        text = self.workspace(name).read_bytes(SPEC)
        assert text is not None
        self.spec = PartitionSpec.from_json(text)
        await super().run(name, job)


class ObservedTables(MemoryTables):
    """Tables that record the addresses of what is read in pieces and of what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.read_uris: set[str] = set()
        self.written: set[str] = set()

    def read_piece(self, piece: Any, *arguments: Any, **named: Any) -> Any:
        self.read_uris.add(piece.uri)
        return super().read_piece(piece, *arguments, **named)

    def write(self, uri: str, frame: Any) -> None:
        self.written.add(uri)
        super().write(uri, frame)


def may(access: Access, method: ObjectMethod, uri: str) -> bool:
    try:
        access.check(ObjectRequest(method, uri))
    except ForeignObject:
        return False
    return True


@pytest.fixture
async def joined() -> tuple[ObservedTables, Access]:
    """Tables after a join, and the access that its processes would have on a cluster."""
    tables = ObservedTables()
    world = JoinInputs(tables, "memory")
    engine = Kept(tables)
    tables.written.clear()
    await world.builder(engine).build(request("one"), RecordingJob(), "one")
    assert engine.spec is not None
    return tables, access_of_join(FOLDER, engine.spec)


async def test_a_join_may_use_what_it_needs(joined: tuple[ObservedTables, Access]) -> None:
    tables, access = joined
    assert 8 == len(tables.read_uris)  # three files of weather, one of the fleet, four segments
    assert [] == [uri for uri in tables.read_uris if not may(access, ObjectMethod.GET, uri)]
    assert tables.written
    assert [] == [uri for uri in tables.written if not may(access, ObjectMethod.PUT, uri)]
    for key in ("spine/chunk-000000.json", "view-002/joined-000001.parquet", "late/000-000000.json"):
        assert may(access, ObjectMethod.PUT, f"{FOLDER}/{key}")
    for key in ("result.json", "error.json", "progress.json", "parts/000000.json"):
        assert may(access, ObjectMethod.PUT, f"{FOLDER}/{key}")
    assert may(access, ObjectMethod.LIST, f"{FOLDER}/")


async def test_a_join_may_use_nothing_else(joined: tuple[ObservedTables, Access]) -> None:
    tables, access = joined
    # Its inputs, and the spec that decides what a later attempt may read.
    read_only = {*tables.read_uris, f"{FOLDER}/spec.json", f"{FOLDER}/versions.json"}
    for uri in read_only:
        assert may(access, ObjectMethod.GET, uri)
        assert not may(access, ObjectMethod.PUT, uri)
        assert not may(access, ObjectMethod.DELETE, uri)
    foreign = [
        "s3://memory/weather/year=2013/part-7.parquet",
        "s3://memory/archive/9.parquet",
        "s3://memory/training-sets/p/other/part-00000.parquet",
        "s3://memory/joins/feature-p-one2/spec.json",
        "s3://other/weather/year=2013/part-0.parquet",
    ]
    assert [] == [uri for uri in foreign if may(access, ObjectMethod.GET, uri)]


def test_a_join_without_a_spec_may_only_report_that() -> None:
    access = access_of_join(FOLDER, None)
    assert may(access, ObjectMethod.GET, f"{FOLDER}/spec.json")
    assert may(access, ObjectMethod.PUT, f"{FOLDER}/error.json")
    assert not may(access, ObjectMethod.PUT, f"{FOLDER}/spec.json")
    assert not may(access, ObjectMethod.PUT, f"{FOLDER}/spine/chunk-000000.json")


class ForeignResult(MemoryPartitions):
    """An engine whose result says that the files are somewhere else."""

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)

    async def run(self, name: str, job: JobProgress) -> None:
        await super().run(name, job)
        workspace: Workspace = self.workspace(name)
        result = workspace.read_json("result.json")
        workspace.write_json("result.json", {**result, "uri": "s3://memory/secret/"})


async def test_a_result_does_not_decide_where_the_files_are() -> None:
    tables = MemoryTables()
    world = JoinInputs(tables, "memory")
    built = await world.builder(ForeignResult(tables)).build(request("one"), RecordingJob(), "one")
    assert f"s3://memory/training-sets/p/one/{work_name('p', 'one')}/parts/" == built.uri
    assert built.row_count == tables.read(built.uri, ["event_timestamp"]).height
