"""Use cases that change runs beside their processes: edit, delete, restore, continue."""

from __future__ import annotations

from flywheel_common.clock import Clock
from flywheel_trainer.runs.limits import check_edit
from flywheel_trainer.runs.ports import RunEdits
from flywheel_trainer.runs.run import Run, RunEdit, RunName


class RunEditing:
    """Edits, deletes, restores and continues runs."""

    def __init__(self, store: RunEdits, clock: Clock) -> None:
        self._store, self._clock = store, clock

    async def edit(self, name: RunName, edit: RunEdit, request_id: str, body: bytes) -> Run:
        """Change name, notes and tags in any state. Raises UnknownRun, InvalidTag, InvalidRunText."""
        check_edit(edit)
        return await self._store.edit(name, edit, request_id, body)

    async def delete(self, name: RunName) -> None:
        """Hide a run until it is restored. Raises UnknownRun, RunActive."""
        await self._store.set_deleted(name, self._clock.now())

    async def restore(self, name: RunName) -> Run:
        """Raises UnknownRun."""
        return await self._store.set_deleted(name, None)

    async def continue_run(
        self, name: RunName, rewind_to_step: int | None, request_id: str, body: bytes
    ) -> Run:
        """Open a run again for another process. Raises UnknownRun, RunOfJob, RunDeleted."""
        return await self._store.continue_run(name, rewind_to_step, self._clock.now(), request_id, body)
