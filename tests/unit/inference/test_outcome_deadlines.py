"""RecordOutcome ends within the deadline of its caller."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, cast

import pytest

from flywheel_common.deadline import budget
from flywheel_common.kafka.errors import KafkaUnavailable
from flywheel_common.kafka.producer import Outgoing, Producer
from flywheel_inference.outcomes.row import OutcomeRow
from flywheel_inference.store.kafka.event_log import KafkaOutcomes


class HangingProducer:
    """A producer whose Kafka does not answer until `answers` is set."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.sent = 0

    async def send_in_order(self, records: Sequence[Outgoing]) -> tuple[int, Any]:
        await self.answers.wait()
        self.sent += len(records)
        return len(records), None


async def test_a_hanging_kafka_is_named_before_the_deadline_and_the_producer_goes_on() -> None:
    producer = HangingProducer()
    outcomes = KafkaOutcomes(cast("Producer", producer), 4)
    began = time.monotonic()
    with budget(1.0), pytest.raises(KafkaUnavailable):
        await outcomes.record("projects/p/models/m", [OutcomeRow("id", "label", 1.0, 1, "id:label")])
    assert time.monotonic() - began < 1.0
    producer.answers.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert producer.sent == 1
