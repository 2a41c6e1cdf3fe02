"""Files of training sets that are being written: each attempt has a folder of its own, and leaves nothing when it fails."""

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
    """What a piece of work (a job, by its id) is called wherever it leaves files."""
    return f"feature-{project}-{work}"


def work_uri(tables: Tables, project: str, training_set_id: str, name: str) -> str:
    """The folder of all that one piece of work writes of a set, and nobody else does."""
    return tables.bucket_uri(f"{_folder(project, training_set_id)}{name}/")


def attempt_uri(tables: Tables, request: TrainingSetRequest, name: str, digest: str) -> str:
    """A new folder. Two attempts at one set, in one process or in two, never write or remove each other's files."""
    uri = work_uri(tables, request.project, request.training_set_id, name)
    return f"{uri}{digest[:16]}-{new_id()[-12:]}/"


@asynccontextmanager
async def unfinished(tables: Tables, uri: str) -> AsyncIterator[None]:
    """What is below `uri` is removed when the block fails or is cancelled.

    The set's row must not be written inside: an answer that got lost does not tell whether the row, and so the files, are there.
    """
    try:
        yield
    except BaseException:
        await remove(tables, uri)
        raise


async def undisturbed(work: Callable[[], None]) -> None:
    """Work in a thread, awaited to its end even when this is cancelled: a thread does not stop, and what it writes must be known."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        with suppress(FlywheelError):
            await running
        raise


async def remove_others(tables: Tables, registered: TrainingSet) -> None:
    """Remove what attempts at this set left that were killed, or came second. Only for a set whose row is written."""
    folder = tables.bucket_uri(_folder(registered.project, registered.id))
    await remove(tables, folder, keep=registered.uri)


def _folder(project: str, training_set_id: str) -> str:
    return f"training-sets/{project}/{training_set_id}/"


async def remove(tables: Tables, uri: str, keep: str = "") -> None:
    """Remove files that are nobody's, but for those below `keep`; where the store is away they stay."""
    try:
        await undisturbed(lambda: tables.remove(uri, keep=keep))
    except FlywheelError as error:
        # They cost space and are nobody's data: the next attempt at this set removes them.
        log.warning("unfinished files stay", uri=uri, reason=error.reason)
