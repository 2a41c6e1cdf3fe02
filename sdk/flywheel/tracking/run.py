"""One run of an experiment, logged from this process.

    with fw.run("experiment", params={"lr": 0.1}) as run:
        for step in range(100):
            run.log({"loss": loss(step)}, step=step)

Nothing waits for the trainer: `log` puts points into memory, a thread writes them to the spool, and another
one sends them. While the trainer is away they wait in the spool.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from google.protobuf.message import Message

from flywheel.tracking.endpoint import Endpoint, Token
from flywheel.tracking.errors import RunFinished, TrackingError
from flywheel.tracking.file_logging import FileLogging
from flywheel.tracking.first_request import continue_request, create_request, path
from flywheel.tracking.sending import Sender
from flywheel.tracking.spool import Kind, Spool, default_root
from flywheel.tracking.values import check_metric_key, number, step_number, texts
from flywheel.tracking.writing import MAX_BUFFERED_POINTS, PointWriter
from flywheel_common.grpc.channel import ClientTls
from flywheel_common.ids import new_id
from flywheel_protos.trainer.v1 import tracking_pb2, trainer_pb2

START_SECONDS = 3.0
"""How long the start waits for the trainer's first answer, so that a refusal is raised there."""
MAX_ERROR = 16_000
EndState = Literal["SUCCEEDED", "FAILED", "CANCELLED"]


class Run(FileLogging):
    """A run that this process writes; make it with `fw.run`. Its methods may be called from any thread."""

    def __init__(
        self,
        spool: Spool,
        endpoint: Endpoint,
        name: str,
        *,
        experiment: str,
        first_step: int | None,
        lease_seconds: float,
        finish_timeout: float,
        system_metrics: bool,
    ) -> None:
        self.name = name
        """`projects/{project}/runs/{run}`."""
        self._spool, self._endpoint, self._finish_timeout = spool, endpoint, finish_timeout
        self._sender = Sender(spool, endpoint, name, lease_seconds / 3)
        self._wake = threading.Event()
        self._writer = PointWriter(name, spool, self._wake, system_metrics=system_metrics)
        self._buffer = self._writer.points
        self._keys: set[str] = set()
        self._experiment = experiment
        self._steps = None if first_step is None else itertools.count(first_step)
        self._finished = False
        self._sending = threading.Thread(
            target=self._sender.send_until_stopped, args=[self._wake], name="flywheel-send", daemon=True
        )

    @property
    def id(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("/")[2]

    @property
    def project(self) -> str:
        return self.name.split("/")[1]

    @property
    def dropped_points(self) -> int:
        """Points that were dropped because the spool, or the disk, was full."""
        return self._writer.dropped

    @property
    def buffered_points(self) -> int:
        """Points in memory, which are not yet in the spool."""
        return len(self._buffer)

    @property
    def spool_folder(self) -> Path:
        """Where records wait for the trainer."""
        return self._spool.folder

    @property
    def problems(self) -> list[str]:
        """Sentences about what the trainer refused or ignored."""
        return list(self._sender.problems)

    # logging

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Add one point per metric. Without a step, the number of calls without one before.

        A value may be NaN or infinite. The first value of a (metric, step) is kept. Raises TrackingError.
        """
        if self._finished:  # not a call: this is the training loop
            raise RunFinished(f"{self.name} has been finished.")
        if step is None:
            if self._steps is None:
                raise TrackingError("Give a step: the last one of a continued run is not known here.")
            step = next(self._steps)
        elif type(step) is not int or not -(2**63) <= step < 2**63:
            step = step_number(step)
        now = time.time_ns() // 1000
        keys = self._keys
        points = []
        for key, value in values.items():
            if key not in keys:
                check_metric_key(key)
                keys.add(key)
            points.append((key, step, value if type(value) is float else number(key, value), now))
        # A call with an invalid value adds no point.
        self._buffer.extend(points)
        if len(self._buffer) > MAX_BUFFERED_POINTS:
            self._writer.wait()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Add params; the first value of a param is kept. Raises TrackingError."""
        update = trainer_pb2.UpdateRunRequest(params=texts(params, "param"))
        self._put(Kind.UPDATE, update)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Add or replace tags. Raises TrackingError."""
        self._put(Kind.UPDATE, trainer_pb2.UpdateRunRequest(tags=texts(tags, "tag")))

    def rename(self, display_name: str) -> None:
        """Change the name that lists show."""
        self._put(Kind.EDIT, tracking_pb2.EditRunRequest(display_name=display_name))

    def set_notes(self, notes: str) -> None:
        """Replace the notes, in Markdown."""
        self._put(Kind.EDIT, tracking_pb2.EditRunRequest(notes=notes))

    def child(self, experiment: str = "", **options: Any) -> Run:
        """A nested run; options as of `fw.run`. The experiment is that of this run by default."""
        return start(
            experiment or self._experiment,
            parent=self,
            project=self.project,
            **{**self._access(), **options},
        )

    def _access(self) -> dict[str, Any]:
        return {"address": self._endpoint.address, "token": self._endpoint.token, "tls": self._endpoint.tls}

    # the end

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything logged so far has reached the trainer; whether it has."""
        self._writer.write()
        last, deadline = self._spool.last_written, time.monotonic() + timeout
        while self._spool.position < last:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def finish(self, state: EndState = "SUCCEEDED", error: str = "") -> None:
        """End the run: send what is left within the timeout of the run, and keep the rest in the spool.

        Warns about what was not sent, was dropped, or was refused. A second call does nothing.
        """
        if self._finished:
            return
        self._finished = True
        atexit.unregister(self._flush_at_exit)
        end = trainer_pb2.UpdateRunRequest(
            name=self.name,
            state=f"RUN_STATE_{state}",
            error_message=error[:MAX_ERROR].replace("\0", ""),
            request_id=uuid.uuid4().hex,
        )
        end.ended_at.GetCurrentTime()
        self._writer.stop()
        try:
            self._write_end(end)
        except OSError as failure:
            self._writer.failure = failure
            self._writer.dropped += len(self._buffer)
        self._sender.stop.set()
        self._wake.set()
        self._sending.join()
        self._sender.stop.clear()
        sent = self._sender.drain(time.monotonic() + self._finish_timeout)
        self._sender.close()
        self._spool.close(remove=sent)
        self._warn(sent)

    def _write_end(self, end: Message) -> None:
        self._writer.write()
        if self._writer.dropped:
            dropped = {"flywheel.dropped_points": str(self._writer.dropped)}
            self._spool.append(Kind.UPDATE, self._request(trainer_pb2.UpdateRunRequest(tags=dropped)))
        self._spool.append(Kind.UPDATE, end.SerializeToString())

    def _warn(self, sent: bool) -> None:
        found = self.problems
        if self._writer.failure is not None:
            found.append(f"The spool could not be written: {self._writer.failure}.")
        if not sent:
            found.append(f"The trainer did not answer: send {self._spool.folder} with `flywheel runs sync`.")
        if self._writer.dropped:
            found.append(f"{self._writer.dropped} points were dropped because the spool was full.")
        if found:
            warnings.warn(f"{self.name}: {' '.join(found)}", RuntimeWarning, stacklevel=3)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        elif issubclass(kind, KeyboardInterrupt | asyncio.CancelledError):
            self.finish("CANCELLED", kind.__name__)
        else:
            self.finish("FAILED", "".join(traceback.format_exception(error))[-MAX_ERROR:])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.shield(asyncio.to_thread(self.__exit__, kind, error, trace))

    # threads

    def begin(self, first: Message, kind: Kind) -> None:
        """Start the threads, with this as the first record; `fw.run` calls it.

        Raises what the trainer answers if it refuses the run at once.
        """
        self._spool.append(kind, first.SerializeToString())
        self._writer.start()
        self._sending.start()
        self._sender.first_try.wait(START_SECONDS)
        refusal = self._sender.refusal
        if refusal is not None:
            self._finished = True
            self._sender.stop.set()
            self._wake.set()
            self._writer.stop()
            self._sending.join()
            self._sender.close()
            self._spool.close(remove=True)
            raise refusal
        atexit.register(self._flush_at_exit)

    def _flush_at_exit(self) -> None:
        """The process ends without `finish`: what was logged is kept, and the run becomes LOST."""
        self._writer.write()
        self.flush(timeout=5.0)

    def _put(self, kind: Kind, request: Any) -> None:
        """Append a request behind the points that were logged before it."""
        self._check_open()
        self._append(kind, self._request(request))

    def _append(self, kind: Kind, payload: bytes) -> None:
        self._writer.write()
        self._spool.append(kind, payload)
        self._wake.set()

    def _check_open(self) -> None:
        if self._finished:
            raise RunFinished(f"{self.name} has been finished.")

    def _request(self, request: Any) -> bytes:
        request.name, request.request_id = self.name, uuid.uuid4().hex
        content: bytes = request.SerializeToString()
        return content


def start(
    experiment: str,
    *,
    params: Mapping[str, Any] | None = None,
    name: str = "",
    tags: Mapping[str, Any] | None = None,
    notes: str = "",
    parent: Run | str | None = None,
    project: str = "default",
    address: str = "",
    token: Token = "",
    tls: ClientTls | None = None,
    resume: str = "",
    rewind_to: int | None = None,
    lease_seconds: float = 60.0,
    system_metrics: bool = True,
    spool: str | Path = "",
    max_spool_bytes: int = 2 * 1024**3,
    finish_timeout: float = 60.0,
) -> Run:
    """Starts a run of an experiment, which is created if it does not exist, and returns it.

    `name` is shown in lists. `parent` makes a nested run. `resume` continues a run (id or name) of a process
    that has ended, from `rewind_to`: points of later steps are removed. `address` is host:port of the
    trainer, else FLYWHEEL_TRAINER_ADDRESS; `token` is the bearer token, or a function that returns it, else
    FLYWHEEL_TOKEN; without `tls` nothing is encrypted. `spool` is the folder for what the trainer has not
    received yet, else FLYWHEEL_SPOOL. `finish_timeout` bounds the seconds that the end waits for the trainer.

    While the trainer is away the run starts all the same. Raises TrackingError, and FlywheelError when the
    trainer refuses the run.
    """
    parent_name = parent.name if isinstance(parent, Run) else parent or ""
    run_id = resume.rpartition("/")[2] or f"run-{new_id()}"
    full_name = resume if resume.startswith("projects/") else f"projects/{project}/runs/{run_id}"
    project = full_name.split("/")[1]
    first: Message
    if resume:
        kind, first = Kind.CONTINUE, continue_request(full_name, rewind_to)
    else:
        described = trainer_pb2.Run(
            experiment=path(project, "experiments", experiment),
            params=texts(params, "param"),
            tags=texts(tags, "tag"),
            display_name=name,
            notes=notes,
            parent_run=path(project, "runs", parent_name) if parent_name else "",
        )
        kind, first = Kind.CREATE, create_request(full_name, described, lease_seconds)
    endpoint = Endpoint.of(address, token, tls)
    opened = Spool((Path(spool) if spool else default_root()) / f"{project}-{run_id}", max_spool_bytes)
    opened.write_description({"run": full_name, **endpoint.describe()})
    run = Run(
        opened,
        endpoint,
        full_name,
        experiment=experiment,
        first_step=0 if not resume else None if rewind_to is None else rewind_to + 1,
        lease_seconds=lease_seconds,
        finish_timeout=finish_timeout,
        system_metrics=system_metrics,
    )
    run.begin(first, kind)
    if resume and params:
        run.log_params(params)
    return run
