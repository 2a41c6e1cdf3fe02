"""A replay sends each event, request and label once, in the order in which they became known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

import flywheel as fw
from flywheel_common.errors import EventTimeOutOfRange
from flywheel_protos.inference.v1 import inference_pb2

START = datetime(2013, 4, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
LANDINGS = fw.StreamSource("landings", {"at": fw.TIMESTAMP, "dest": fw.STRING}, timestamp="at")


def at(*hours: float | None) -> list[datetime | None]:
    return [None if h is None else START + h * HOUR for h in hours]


class Platform:
    """Records what a client sends, in order."""

    def __init__(self, refused: str = "") -> None:
        self.sent: list[tuple[str, object]] = []
        self.refused = refused

    async def push(self, source: str, rows: Any, schema: Any, *, ids: Any) -> Any:
        self.sent += [("event", (source, i)) for i in ids]
        return SimpleNamespace(offsets=[len(self.sent)])

    async def wait_applied(self, offsets: Any, *, within: float) -> None:
        self.sent.append(("applied", len(offsets)))

    async def record_outcomes(self, model: str, labels: Any) -> None:
        self.sent += [("label", label) for label in labels]

    async def predict(
        self, model: str, keys: Any, fields: Any, *, as_of: datetime, prediction_id: str
    ) -> Any:
        self.sent.append(("request", (prediction_id, keys, fields, as_of)))
        if prediction_id == self.refused:
            raise fw.Unavailable("down")
        return inference_pb2.PredictResponse()


def replay(platform: Platform) -> fw.Replay:
    """Landings a and b before the start, c at the start, d in the second hour, e never. Requests b … e."""
    frame = pl.DataFrame(
        {
            "id": ["d", "a", "c", "b", "e"],
            "at": at(1.5, -2, 0, -1, None),
            "asked": at(1, -5, 0, 0, 2),
            "dest": ["D", "A", "C", "B", "E"],
            "hour": [1, 7, 0, 0, 2],
            "late": [1.0, 0.0, 1.0, None, None],
        }
    ).with_columns(pl.col("at", "asked").dt.cast_time_unit("us"))
    requests = fw.Requests(
        frame,
        at="asked",
        id="id",
        entity_keys=["dest"],
        request_fields=["hour"],
        label="late",
        labelled_at="at",
    )
    return fw.Replay(platform, "m", [fw.Events(LANDINGS, frame, "id")], requests, start=START)  # type: ignore[arg-type]


def of(platform: Platform, kind: str) -> list[Any]:
    return [what for k, what in platform.sent if k == kind]


async def test_requests_see_the_state_at_the_start_of_their_step() -> None:
    platform = Platform()
    played = replay(platform)
    assert await played.push(START - 3 * HOUR, START) == 2
    assert played.total(START + 3 * HOUR) == 4
    asked = [step async for step in played.steps(START + 3 * HOUR)]
    assert asked == [(START + HOUR, 2), (START + 2 * HOUR, 1), (START + 3 * HOUR, 1)]
    order = [
        what[0] if kind == "request" else what[1]
        for kind, what in platform.sent
        if kind in ("event", "request")
    ]
    assert order[:3] == ["a", "b", "c"]
    assert sorted(order[3:5]) == ["b", "c"]
    assert order[5:] == ["d", "d", "e"]
    assert ("c", {"dest": "C"}, {"hour": 0}, START) in of(platform, "request")
    assert len(played.answers) == len(played.milliseconds) == 4


async def test_labels_are_sent_when_known_and_only_for_replayed_requests() -> None:
    platform = Platform()
    played = replay(platform)
    await played.push(START - 3 * HOUR, START)
    assert of(platform, "label") == []
    async for _ in played.steps(START + 3 * HOUR):
        pass
    assert of(platform, "label") == [("c", 1.0, START), ("d", 1.0, START + 1.5 * HOUR)]


async def test_a_failed_request_is_counted_and_the_replay_continues() -> None:
    platform = Platform(refused="d")
    played = replay(platform)
    async for _ in played.steps(START + 3 * HOUR):
        pass
    assert [e.message for e in played.failures] == ["down"]
    assert played.summary()[0] == ("predictions", "3 answered, 0 by a fallback, 1 failed")


def test_a_replay_without_requests_has_no_percentiles() -> None:
    assert dict(replay(Platform()).summary())["Predict, p50 / p99"] == "–"


def test_storage_reads_its_address_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_S3_ENDPOINT", "http://127.0.0.1:1")
    assert fw.storage().type_name == "s3"


async def test_a_bound_of_1970_is_refused_and_a_naive_one_is_utc() -> None:
    platform, unset = Platform(), datetime(1970, 1, 1, tzinfo=UTC)
    played = replay(platform)
    with pytest.raises(EventTimeOutOfRange, match="start"):
        fw.Replay(platform, "m", [], None, start=unset)  # type: ignore[arg-type]
    with pytest.raises(EventTimeOutOfRange, match="start"):
        await played.push(unset, START)
    with pytest.raises(EventTimeOutOfRange, match="end"):
        await played.push(START, unset)
    with pytest.raises(EventTimeOutOfRange, match="until"):
        played.total(unset)
    with pytest.raises(EventTimeOutOfRange, match="until"):
        await anext(played.steps(unset))
    naive = (START + 3 * HOUR).replace(tzinfo=None)
    assert 4 == played.total(naive)
    assert 3 == len([step async for step in played.steps(naive)])
