"""The event envelope and the Kafka topics."""

from __future__ import annotations

import zlib
from datetime import UTC, datetime

import pytest

from flywheel_common.errors import InvalidArgument
from flywheel_common.kafka import topics
from flywheel_common.kafka.envelope import build_event, parse_event, payload_of
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_protos.events.v1.prediction_pb2 import OutcomeBatch, PredictionBatch

MOMENT = datetime(2013, 9, 1, 12, 30, tzinfo=UTC)


def test_an_event_carries_its_payload_type_key_and_time() -> None:
    sent = build_event(
        OutcomeBatch(model="projects/p/models/m"),
        source="flywheel-inference",
        key="3",
        event_time=MOMENT,
        event_id="e1",
    )
    event = parse_event(sent.SerializeToString())
    assert (event.id, event.type, event.key) == ("e1", "flywheel.events.v1.OutcomeBatch", "3")
    assert event.event_time.ToDatetime(tzinfo=UTC) == MOMENT
    assert payload_of(event, OutcomeBatch).model == "projects/p/models/m"


def test_a_payload_of_another_type_is_refused() -> None:
    event = build_event(OutcomeBatch(), source="s", key="k", event_time=MOMENT)
    with pytest.raises(InvalidArgument) as caught:
        payload_of(event, PredictionBatch)
    assert caught.value.reason == "UNEXPECTED_EVENT_TYPE"


@pytest.mark.parametrize("value", [b"", b"\xff\xff", b"not an event", Event(id="x").SerializeToString()])
def test_bytes_that_are_not_an_event_are_refused(value: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_event(value)
    assert caught.value.reason == "MALFORMED_EVENT"


def test_an_event_time_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        build_event(OutcomeBatch(), source="s", key="k", event_time=datetime(2013, 1, 1))


def test_predictions_and_outcomes_have_equal_partition_counts() -> None:
    by_name = {spec.name: spec for spec in topics.STANDARD}
    assert by_name[topics.PREDICTION_LOGGED].partitions == by_name[topics.OUTCOME_RECORDED].partitions


def test_the_partition_is_crc32_of_the_id() -> None:
    assert zlib.crc32(b"123456789") == 0xCBF43926  # the check value of CRC-32
    assert topics.partition_for("123456789", 4) == 0xCBF43926 % 4
    spread = [topics.partition_for(f"p-{i}", 4) for i in range(4000)]
    assert all(900 < spread.count(p) < 1100 for p in range(4))


def test_topic_names() -> None:
    assert topics.feature_source("departures") == "feature.source.departures"
    assert topics.dead_letter("monitor") == "dead-letter.monitor"
