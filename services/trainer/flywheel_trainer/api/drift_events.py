"""The consumer of `drift.detected`: each event is decided by the model's retraining policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError
from flywheel_common.kafka.envelope import payload_of
from flywheel_common.kafka.errors import MalformedEvent
from flywheel_common.kafka.poison import PoisonError
from flywheel_common.kafka.record import Record
from flywheel_common.postgres.pool import Connection
from flywheel_common.telemetry.logs import get_logger
from flywheel_protos.events.v1.lifecycle_pb2 import DriftDetected
from flywheel_trainer.pipelines.pipeline_run import ModelName
from flywheel_trainer.policies.decision import Drift
from flywheel_trainer.policies.ports import Decisions

log = get_logger(__name__)


class DriftHandler:
    """Handler of the consumer loop; `decisions` makes `Decisions` that use the loop's transaction."""

    def __init__(self, decisions: Callable[[Connection], Decisions], clock: Clock) -> None:
        self._decisions, self._clock = decisions, clock

    async def __call__(self, conn: Connection, records: Sequence[Record]) -> None:
        for record in records:
            assert record.event is not None
            try:
                drift = drift_from_proto(payload_of(record.event, DriftDetected))
                ModelName.parse(drift.model)
            except FlywheelError as error:
                raise PoisonError(error.message, [record]) from error
            decision = await self._decisions(conn).decide(drift, self._clock.now())
            reason = "no policy, or decided before" if decision is None else str(decision.reason)
            log.info("retraining decided", model=drift.model, alert=drift.alert, reason=reason)


def drift_from_proto(event: DriftDetected) -> Drift:
    """Raises MalformedEvent if there is no alert or no window."""
    if not event.alert or not event.HasField("window_end"):
        raise MalformedEvent("The drift event has no alert or no window_end.")
    return Drift(
        alert=event.alert,
        model=event.model,
        kind=event.kind,
        window_end=event.window_end.ToDatetime(tzinfo=UTC),
        data_quality_cause=event.data_quality_cause,
    )
