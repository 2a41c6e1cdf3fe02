"""Batching of online requests: concurrent requests share a read, and each gets its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from flywheel.tables import to_dict
from flywheel_common.deadline import budget, left_seconds
from flywheel_common.errors import Unavailable
from flywheel_feature.api.answer_encoding import AnswerEncoder
from flywheel_feature.definitions.model import BatchView, DataType, Feature, View
from flywheel_feature.encoding.keys import entity_keys
from flywheel_feature.encoding.row_encoding import RowLayout
from flywheel_feature.expressions.errors import InvalidExpression
from flywheel_feature.online.errors import store_down
from flywheel_feature.online.lookup import FULL_ROWS, Lookup, SharedRead
from flywheel_feature.online.read_plan import ReadPlan
from flywheel_protos.feature.v1 import feature_pb2 as pb
from tests.support.builders.feature_units import plan_of_view, run_event_loop

T = DataType
FEATURES = (Feature("a", T.FLOAT64), Feature("b", T.INT64))
NOW = 1_000_000


class Store:
    """Rows of the entities 0 to 99; records the number of keys of each read, and waits for `gate`."""

    def __init__(self, plan: ReadPlan) -> None:
        numbers = np.arange(100)
        present = np.ones(100, np.bool_)
        columns = {"a": (numbers / 2, present), "b": (numbers * 3, numbers % 7 != 0)}
        rows = RowLayout(FEATURES).encode(columns, numbers + 1, numbers + 1)
        self.rows = dict(zip(plan.redis_keys([keys(range(100))]), rows, strict=True))
        self.reads: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.reads.append(len(keys))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [self.rows.get(k) for k in keys]


def keys(numbers: Sequence[int] | range) -> list[bytes]:
    return entity_keys([(T.STRING, [f"e{n}" for n in numbers])])


def lookup(*numbers: int) -> Lookup:
    return Lookup([keys(numbers)], {}, NOW, len(numbers))


def values(answer: bytes) -> tuple[list[float | None], list[int | None], list[int], list[int]]:
    """The two columns, the statuses of the first, and the event times."""
    message = pb.GetOnlineFeaturesResponse.FromString(answer)
    columns, rows = to_dict(message.features), message.features.row_count
    times = np.frombuffer(message.event_times, "<i8").tolist()
    return columns["v__a"], columns["v__b"], list(message.statuses[:rows]), times


def expected(*numbers: int) -> tuple[list[float | None], list[int | None], list[int], list[int]]:
    known = [n if 0 <= n < 100 else None for n in numbers]
    return (
        [None if n is None else n / 2 for n in known],
        [None if n is None or n % 7 == 0 else n * 3 for n in known],
        [3 if n is None else 1 for n in known],
        [0 if n is None else n + 1 for n in known],
    )


@pytest.fixture
def plan() -> ReadPlan:
    return plan_of_view(View("default", "v", "e", BatchView("s", FEATURES), version=1, features=FEATURES))


async def test_concurrent_requests_share_one_read(plan: ReadPlan) -> None:
    store = Store(plan)
    shared = SharedRead(plan, store, AnswerEncoder)
    wanted = [(1,), (50,), (7,), (999,), (3,)]
    answers = await asyncio.gather(*(shared.read(lookup(*w)) for w in wanted))
    assert [expected(*w) for w in wanted] == [values(a) for a in answers]
    assert [5] == store.reads


async def test_requests_of_different_sizes_share_one_read(plan: ReadPlan) -> None:
    store = Store(plan)
    shared = SharedRead(plan, store, AnswerEncoder)
    wanted = [(1, 2, 3), (50,), (7, 999), (), tuple(range(40))]
    answers = await asyncio.gather(*(shared.read(lookup(*w)) for w in wanted))
    assert [expected(*w) for w in wanted if w] == [
        values(a) for a, w in zip(answers, wanted, strict=True) if w
    ]
    assert pb.GetOnlineFeaturesResponse.FromString(answers[3]).features.row_count == 0
    assert [46] == store.reads


async def test_requests_during_a_read_form_the_next_batch(plan: ReadPlan) -> None:
    store = Store(plan)
    shared = SharedRead(plan, store, AnswerEncoder)
    store.gate.clear()
    first = asyncio.create_task(shared.read(lookup(1)))
    while not store.reads:
        await asyncio.sleep(0)
    later = [asyncio.create_task(shared.read(lookup(n))) for n in range(2, 12)]
    await run_event_loop()
    assert [1] == store.reads
    store.gate.set()
    answers = await asyncio.gather(first, *later)
    assert [expected(n) for n in range(1, 12)] == [values(a) for a in answers]
    assert [1, 10] == store.reads


async def test_a_batch_has_at_most_full_rows(plan: ReadPlan) -> None:
    store = Store(plan)
    shared = SharedRead(plan, store, AnswerEncoder)
    many = tuple(range(100)) * (FULL_ROWS // 200)
    answers = await asyncio.gather(*(shared.read(lookup(*many)) for _ in range(5)))
    assert [expected(*many)] * 5 == [values(a) for a in answers]
    assert [2 * len(many), 2 * len(many), len(many)] == store.reads


async def test_cancelled_requests_do_not_affect_the_others(plan: ReadPlan) -> None:
    store = Store(plan)
    shared = SharedRead(plan, store, AnswerEncoder)
    store.gate.clear()
    tasks = [asyncio.create_task(shared.read(lookup(n))) for n in (1, 2, 3)]
    while not store.reads:
        await asyncio.sleep(0)
    waiting = asyncio.create_task(shared.read(lookup(4)))
    await asyncio.sleep(0)
    tasks[1].cancel()
    waiting.cancel()
    store.gate.set()
    answers = await asyncio.gather(*tasks, waiting, return_exceptions=True)
    assert expected(1) == values(answers[0])  # type: ignore[arg-type]
    assert expected(3) == values(answers[2])  # type: ignore[arg-type]
    assert isinstance(answers[1], asyncio.CancelledError)
    assert isinstance(answers[3], asyncio.CancelledError)
    assert expected(5) == values(await shared.read(lookup(5)))
    assert [3, 1] == store.reads


async def test_a_hanging_store_fails_requests_before_their_deadline(plan: ReadPlan) -> None:
    store = Store(plan)
    shared = SharedRead(plan, store, AnswerEncoder)
    store.gate.clear()
    without_deadline = asyncio.create_task(shared.read(lookup(1)))
    while not store.reads:
        await asyncio.sleep(0)
    for read in (shared.read, shared.read, shared.answer):
        with budget(0.6):
            with pytest.raises(Unavailable) as down:
                await read(lookup(2))
            left = left_seconds()
        assert "ONLINE_STORE_DOWN" == down.value.reason
        assert left is not None
        assert left > 0
    store.gate.set()
    assert expected(1) == values(await without_deadline)
    with budget(5.0):
        assert expected(2) == values(await shared.read(lookup(2)))
    assert [1, 1, 1] == store.reads, "failed requests were read"


async def test_a_failed_read_fails_its_batch_and_not_the_next(plan: ReadPlan) -> None:
    store = Store(plan)
    shared = SharedRead(plan, store, AnswerEncoder)
    store.error = store_down()
    answers = await asyncio.gather(*(shared.read(lookup(n)) for n in (1, 2)), return_exceptions=True)
    assert ["ONLINE_STORE_DOWN"] * 2 == [getattr(a, "reason", a) for a in answers]
    assert [2] == store.reads
    store.error = None
    assert expected(6) == values(await shared.read(lookup(6)))


async def test_an_invalid_request_does_not_fail_its_batch(
    plan: ReadPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = SharedRead(plan, Store(plan), AnswerEncoder)
    decode = plan.decode

    def failing(blobs, as_of, requests, valid_until):  # type: ignore[no-untyped-def]
        if (as_of == 13).any():
            raise InvalidExpression("no")
        return decode(blobs, as_of, requests, valid_until)

    monkeypatch.setattr(plan, "decode", failing)
    invalid = Lookup([keys([2])], {}, 13, 1)
    answers = await asyncio.gather(
        shared.read(lookup(1)), shared.read(invalid), shared.read(lookup(3)), return_exceptions=True
    )
    assert expected(1) == values(answers[0])  # type: ignore[arg-type]
    assert getattr(answers[1], "reason", "") == "INVALID_EXPRESSION"
    assert expected(3) == values(answers[2])  # type: ignore[arg-type]
