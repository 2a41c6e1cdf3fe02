"""Files of training sets that are being written: each attempt has a folder, which is removed if it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from flywheel_common.errors import FlywheelError
from flywheel_common.ids import new_id
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.offline.model import TrainingSet, TrainingSetRequest
from flywheel_feature.tables.ports import Tables

log = get_logger(__name__)


def work_name(project: str, work: str) -> str:
    """The name of the work of one job (`work` is its id) in all places where it writes files."""
    return f"feature-{project}-{work}"


def work_uri(tables: Tables, project: str, training_set_id: str, name: str) -> str:
    """The folder for the files that one job writes of a training set; no other job writes there."""
    return tables.bucket_uri(f"{_folder(project, training_set_id)}{name}/")


def attempt_uri(tables: Tables, request: TrainingSetRequest, name: str, digest: str) -> str:
    """A new folder for one attempt, so that concurrent attempts never write or remove each other's files."""
    uri = work_uri(tables, request.project, request.training_set_id, name)
    return f"{uri}{digest[:16]}-{new_id()[-12:]}/"


@asynccontextmanager
async def remove_on_failure(tables: Tables, uri: str) -> AsyncIterator[None]:
    """Remove the files below `uri` when the block fails or is cancelled.

    The row of the training set must not be written inside the block: if the answer to that write is lost, the
    set may exist, and its files must stay.
    """
    try:
        yield
    except BaseException:
        await remove(tables, uri)
        raise


async def finish_in_thread(work: Callable[[], None]) -> None:
    """Run `work` in a thread and wait for its end, also when cancelled.

    A thread cannot be stopped, and the caller must know what it has written.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        with suppress(FlywheelError):
            await running
        raise


async def remove_other_attempts(tables: Tables, registered: TrainingSet) -> None:
    """Remove the files of other attempts at a registered training set, which were killed or came second."""
    folder = tables.bucket_uri(_folder(registered.project, registered.id))
    await remove(tables, folder, keep=registered.uri)


def _folder(project: str, training_set_id: str) -> str:
    return f"training-sets/{project}/{training_set_id}/"


async def remove(tables: Tables, uri: str, keep: str = "") -> None:
    """Remove the files below `uri`, except those below `keep`. Files stay when the store is unreachable."""
    try:
        await finish_in_thread(lambda: tables.remove(uri, keep=keep))
    except FlywheelError as error:
        # They only use space: the next attempt at this set removes them.
        log.warning("cannot remove unfinished files", uri=uri, reason=error.reason)
