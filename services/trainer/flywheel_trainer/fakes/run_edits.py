"""`RunEdits` in memory."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from flywheel_job.outcome import Artifact
from flywheel_trainer.fakes.tracking import MemoryTracking, RunRecord
from flywheel_trainer.runs.errors import RunActive, RunDeleted, RunOfJob, UnknownRun
from flywheel_trainer.runs.ports import Remove
from flywheel_trainer.runs.run import Run, RunEdit, RunName, RunState


class MemoryRunEdits:
    """`RunEdits` over a `MemoryTracking`."""

    def __init__(self, tracking: MemoryTracking) -> None:
        self._tracking = tracking
        self._requests = tracking.requests

    async def edit(self, name: RunName, edit: RunEdit, request_id: str, body: bytes) -> Run:
        if self._requests.replay("EditRun", request_id, body) is None:
            record = self._record(name)
            run = record.run
            tags = {k: v for k, v in run.tags.items() if k not in edit.removed_tags} | dict(edit.tags)
            record.run = replace(
                run,
                display_name=run.display_name if edit.display_name is None else edit.display_name,
                notes=run.notes if edit.notes is None else edit.notes,
                tags=tags,
            )
            self._requests.store("EditRun", request_id, body, name)
        return self._record(name).run

    async def set_deleted(self, name: RunName, at: datetime | None) -> Run:
        record = self._record(name)
        if at is not None and record.run.state is RunState.RUNNING:
            raise RunActive.of(name)
        if at is None or record.run.deleted_at is None:
            record.run = replace(record.run, deleted_at=at)
        return record.run

    async def continue_run(
        self, name: RunName, rewind_to_step: int | None, now: datetime, request_id: str, body: bytes
    ) -> Run:
        if self._requests.replay("ContinueRun", request_id, body) is None:
            record = self._record(name)
            if record.run.deleted_at is not None:
                raise RunDeleted.of(name)
            if record.run.job:
                raise RunOfJob.of(name)
            record.reopen(now)
            record.run = replace(record.run, generation=record.run.generation + 1)
            if rewind_to_step is not None:
                record.rewind(rewind_to_step)
            self._requests.store("ContinueRun", request_id, body, name)
        return self._record(name).run

    async def deleted_before(self, project: str, before: datetime, limit: int) -> list[Run]:
        found = [
            (record.run.deleted_at, record.run.name.run, record.run)
            for name, record in self._tracking.runs.items()
            if name.project == project and self._is_deleted(record, before)
        ]
        return [run for _, _, run in sorted(found, key=lambda one: one[:2])[:limit]]

    async def purge(self, name: RunName, before: datetime, remove: Remove) -> bool:
        record = self._tracking.runs.get(name)
        if record is None or not self._is_deleted(record, before):
            return False
        others = {
            artifact.sha256
            for other, one in self._tracking.runs.items()
            if other != name
            for artifact in one.run.artifacts
        }
        own = {one.sha256: one for one in record.run.artifacts if one.sha256 not in others}
        await remove(list(own.values()))
        del self._tracking.runs[name]
        return True

    def _is_deleted(self, record: RunRecord, before: datetime) -> bool:
        at, parent = record.run.deleted_at, record.run.parent_run
        # The parent may be gone; the run of a job, the parent of those of its trials, stays.
        above = self._tracking.runs.get(RunName.parse(parent)) if parent else None
        of_trial = above is not None and above.run.job
        return at is not None and at < before and not record.run.job and not of_trial

    async def add_artifact(self, name: RunName, artifact: Artifact, now: datetime) -> None:
        record = self._record(name)
        if record.run.deleted_at is not None:
            raise RunDeleted.of(name)
        others = tuple(one for one in record.run.artifacts if one.name != artifact.name)
        record.run = replace(record.run, artifacts=(*others, artifact))
        if record.run.state is RunState.RUNNING:
            record.heartbeat = now

    def _record(self, name: RunName) -> RunRecord:
        record = self._tracking.runs.get(name)
        if record is None:
            raise UnknownRun.of(name)
        return record
