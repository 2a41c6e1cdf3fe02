"""Names, limits, deletion and artifacts of runs at the edge of TrainerService."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_protos.trainer.v1 import purge_pb2
from flywheel_protos.trainer.v1 import tracking_pb2 as tracking
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from tests.support.builders.trainer_requests import P, create_run
from tests.support.servers.trainer import MemoryTrainer

CONTENT = b"png" * 1000


async def reason(call: Any) -> str:
    with pytest.raises(grpc.RpcError) as failed:
        await call
    return from_rpc_error(failed.value).reason


async def parts(target: Any, *data: bytes) -> AsyncIterator[tracking.UploadRunArtifactRequest]:
    yield tracking.UploadRunArtifactRequest(target=target)
    for one in data:
        yield tracking.UploadRunArtifactRequest(data=one)


def target(run: str, artifact: str = "plots/roc.png", **fields: Any) -> Any:
    values = {"sha256": hashlib.sha256(CONTENT).hexdigest(), "size_bytes": len(CONTENT), **fields}
    return tracking.UploadRunArtifactRequest.Target(run=run, artifact=artifact, **values)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"params": {"k" * 10_240: "v"}}, "INVALID_PARAM"),
        ({"params": {"k": "v" * 8_001}}, "INVALID_PARAM"),
        ({"params": {"k": "a\0b"}}, "INVALID_PARAM"),
        ({"tags": {"k" * 251: "v"}}, "INVALID_TAG"),
        ({"display_name": "n" * 251}, "INVALID_RUN_TEXT"),
        ({"notes": "n" * 65_537}, "INVALID_RUN_TEXT"),
        ({"artifacts": [pb.RunArtifact(name="../etc/passwd")]}, "INVALID_ARTIFACT"),
        ({"parent_run": f"{P}/runs/none"}, "UNKNOWN_RUN"),
    ],
)
async def test_a_run_with_texts_out_of_bounds_is_refused(
    trainer: MemoryTrainer, fields: Any, expected: str
) -> None:
    assert expected == await reason(trainer.stub.CreateRun(create_run(**fields)))
    assert not (await trainer.stub.ListRuns(pb.ListRunsRequest(parent=P))).runs


async def test_a_metric_key_of_ten_kibibytes_is_refused(trainer: MemoryTrainer) -> None:
    run = (await trainer.stub.CreateRun(create_run())).run.name
    points = pb.LogMetricsRequest(run=run, keys=["k" * 10_240], steps=[1], values=[1.0], times=[1])
    assert "INVALID_METRIC_KEY" == await reason(trainer.stub.LogMetrics(points))


async def test_metrics_that_are_not_finite_are_stored_as_such(trainer: MemoryTrainer) -> None:
    run = (await trainer.stub.CreateRun(create_run())).run.name
    values = [float("inf"), float("-inf"), float("nan")]
    points = pb.LogMetricsRequest(run=run, keys=["a", "b", "c"], steps=[1] * 3, values=values, times=[1] * 3)
    assert 3 == (await trainer.stub.LogMetrics(points)).stored_count
    stored = (await trainer.stub.GetRun(pb.GetRunRequest(name=run))).run
    assert ["inf", "-inf", "nan"] == [str(stored.metrics[key]) for key in "abc"]


async def test_a_run_id_of_the_caller_is_used_once(trainer: MemoryTrainer) -> None:
    request = create_run("once")
    request.run_id = "run-mine"
    run = (await trainer.stub.CreateRun(request)).run
    assert (f"{P}/runs/run-mine", 1) == (run.name, run.generation)
    assert run == (await trainer.stub.CreateRun(request)).run
    request.request_id = "other"
    assert "RUN_EXISTS" == await reason(trainer.stub.CreateRun(request))
    request.run_id = "Not an id"
    assert "INVALID_ID" == await reason(trainer.stub.CreateRun(request))


async def test_a_run_is_edited_deleted_restored_and_continued(trainer: MemoryTrainer) -> None:
    run = (await trainer.stub.CreateRun(create_run())).run.name
    delete = tracking.DeleteRunRequest(name=run)
    assert "RUN_ACTIVE" == await reason(trainer.stub.DeleteRun(delete))
    await trainer.stub.UpdateRun(pb.UpdateRunRequest(name=run, state=pb.RUN_STATE_FAILED))
    await trainer.stub.DeleteRun(delete)
    assert not (await trainer.stub.ListRuns(pb.ListRunsRequest(parent=P))).runs
    (shown,) = (await trainer.stub.ListRuns(pb.ListRunsRequest(parent=P, show_deleted=True))).runs
    assert shown.HasField("deleted_at")
    restored = (await trainer.stub.RestoreRun(tracking.RestoreRunRequest(name=run))).run
    assert not restored.HasField("deleted_at")
    edit = tracking.EditRunRequest(name=run, display_name="n", tags={"a": "b"}, request_id="e")
    assert "n" == (await trainer.stub.EditRun(edit)).run.display_name
    edit = tracking.EditRunRequest(name=run, removed_tags=["a"], notes="why")
    edited = (await trainer.stub.EditRun(edit)).run
    assert ("n", "why", {}) == (edited.display_name, edited.notes, dict(edited.tags))
    again = tracking.ContinueRunRequest(name=run, rewind_to_step=3, request_id="c")
    continued = (await trainer.stub.ContinueRun(again)).run
    assert (pb.RUN_STATE_RUNNING, 2) == (continued.state, continued.generation)
    late = pb.UpdateRunRequest(name=run, generation=1)
    assert "RUN_CONTINUED" == await reason(trainer.stub.UpdateRun(late))


async def test_an_artifact_is_uploaded_and_read_back(trainer: MemoryTrainer) -> None:
    run = (await trainer.stub.CreateRun(create_run())).run.name
    for _ in range(2):
        call = trainer.stub.UploadRunArtifact(parts(target(run), CONTENT[:100], CONTENT[100:]))
        artifact = (await call).artifact
    stored = (await trainer.stub.GetRun(pb.GetRunRequest(name=run))).run
    assert [artifact] == list(stored.artifacts)
    assert ("plots/roc.png", len(CONTENT)) == (artifact.name, artifact.size_bytes)
    download = trainer.stub.DownloadRunArtifact
    request = tracking.DownloadRunArtifactRequest(run=run, artifact="plots/roc.png")
    assert CONTENT == b"".join([part.data async for part in download(request)])
    keys = [info.key async for info in trainer.ports.objects.list("")]
    assert 1 == len(keys), "no upload is left over"


async def test_an_artifact_that_differs_from_its_announcement_is_refused(trainer: MemoryTrainer) -> None:
    run = (await trainer.stub.CreateRun(create_run())).run.name
    upload = trainer.stub.UploadRunArtifact
    names = ["..", "../x", "a/../b", "/etc/passwd", "a//b", "", "a\\b", "x" * 251, "."]
    for bad in (
        *(target(run, name) for name in names),
        target(run, sha256="AB" * 32),
        target(run, size_bytes=6 * 1024**3),
        target(run, size_bytes=1),
        target(run, size_bytes=len(CONTENT) + 1),
        target(run, sha256="ab" * 32),
    ):
        assert "INVALID_ARTIFACT" == await reason(upload(parts(bad, CONTENT)))
    assert "UNKNOWN_RUN" == await reason(upload(parts(target(f"{P}/runs/none"), CONTENT)))
    assert [] == [info.key async for info in trainer.ports.objects.list("")]
    uri = [pb.RunArtifact(name="secret", uri="s3://b/secret", sha256="ab" * 32)]
    await trainer.stub.UpdateRun(pb.UpdateRunRequest(name=run, artifacts=uri))
    request = tracking.DownloadRunArtifactRequest(run=run, artifact="secret")
    assert "UNKNOWN_RUN_ARTIFACT" == await reason(trainer.stub.DownloadRunArtifact(request).read())


def advance_to(trainer: MemoryTrainer, after: timedelta) -> None:
    """Move the clock of the trainer to a time after now: objects have the time of this machine."""
    trainer.clock.advance((datetime.now(UTC) + after - trainer.clock.now()).total_seconds())


async def test_deleted_runs_are_purged_with_their_files(trainer: MemoryTrainer) -> None:
    async def ended(request_id: str) -> str:
        name = (await trainer.stub.CreateRun(create_run(request_id))).run.name
        await trainer.stub.UploadRunArtifact(parts(target(name), CONTENT))
        await trainer.stub.UpdateRun(pb.UpdateRunRequest(name=name, state=pb.RUN_STATE_FAILED))
        return str(name)

    async def purge(**fields: Any) -> tuple[list[str], int]:
        request = purge_pb2.PurgeRunsRequest(parent=P, deleted_for=Duration(seconds=7200), **fields)
        answer = await trainer.stub.PurgeRuns(request)
        return list(answer.runs), answer.artifact_bytes

    async def files() -> int:
        return len([info async for info in trainer.ports.objects.list("")])

    first, second, shown = [await ended(name) for name in "abc"]
    for name in (first, second):
        await trainer.stub.DeleteRun(tracking.DeleteRunRequest(name=name))
    assert ([], 0) == await purge()
    advance_to(trainer, timedelta(hours=3))
    assert ([first, second], 2 * len(CONTENT)) == await purge(dry_run=True)
    assert ([first], 0) == await purge(page_size=1), "another run has its file"
    assert "UNKNOWN_RUN" == await reason(trainer.stub.RestoreRun(tracking.RestoreRunRequest(name=first)))
    await trainer.stub.DeleteRun(tracking.DeleteRunRequest(name=shown))
    assert ([second], 0) == await purge()
    assert 1 == await files()
    advance_to(trainer, timedelta(hours=6))
    assert ([shown], len(CONTENT)) == await purge()
    assert 0 == await files()
    short = purge_pb2.PurgeRunsRequest(parent=P, deleted_for=Duration(seconds=60))
    assert "INVALID_PURGE" == await reason(trainer.stub.PurgeRuns(short))


async def test_a_file_that_is_being_uploaded_again_is_not_removed(trainer: MemoryTrainer) -> None:
    name = (await trainer.stub.CreateRun(create_run())).run.name
    await trainer.stub.UploadRunArtifact(parts(target(name), CONTENT))
    await trainer.stub.UpdateRun(pb.UpdateRunRequest(name=name, state=pb.RUN_STATE_FAILED))
    advance_to(trainer, -timedelta(hours=2))
    await trainer.stub.DeleteRun(tracking.DeleteRunRequest(name=name))
    advance_to(trainer, timedelta(0))
    request = purge_pb2.PurgeRunsRequest(parent=P, deleted_for=Duration(seconds=3600))
    answer = await trainer.stub.PurgeRuns(request)
    assert ([name], 0) == (list(answer.runs), answer.artifact_bytes)
    assert 1 == len([info async for info in trainer.ports.objects.list("")])
