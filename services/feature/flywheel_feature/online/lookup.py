"""GetOnlineFeatures: requests that come together are read together.

Per plan one batch is out at a time; what arrives meanwhile forms the next, and a batch that follows a crowd waits until as many are
there or the trickle of requests ends. A lone request leaves after four turns of the event loop; a crowd shares one MGET, one decode,
one evaluation of the expressions and one writing of answers. A second batch out at once would only cut the first in two: Redis answers
one connection in order, and one thread decodes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from time import perf_counter
from typing import Protocol

import numpy as np
from prometheus_client import Histogram

from flywheel_common.deadline import in_time, seconds_to_answer
from flywheel_common.errors import NotFound, Unavailable
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.encoding.frames import Columns
from flywheel_feature.encoding.same_length_keys import joined
from flywheel_feature.online.read_counters import ReadCounters
from flywheel_feature.online.read_plan import Answer, ReadPlan, plan_of_features, plan_of_set
from flywheel_feature.windows.applied_offsets import AppliedOffsets

MAXIMUM_ROWS = 1000
FULL_ROWS = 2000
CROWD = 64
"""Requests that are not kept waiting for more."""
QUIET_TURNS = 4
"""A gRPC server takes up one call every other turn of the event loop, so a crowd is a trickle. So many turns of the event loop in a row
that brought nobody end the waiting; for as many times of that a batch waits that has fewer requests than came lately as came. Measured at 16
calls in flight: two turns make batches of 4, four make one of 14 and then two of a straggler each, these make batches of 15.7."""
FORGET = 0.9
"""What is left of the size that is expected, from one batch to the next smaller one."""
PLANS_KEPT = 256

_SECONDS = Histogram(
    "flywheel_feature_lookup_seconds", "Seconds of reading a batch of lookups: store, decoding, expressions",
    buckets=(0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 1.0),
)  # fmt: skip
_BATCH = Histogram(
    "flywheel_feature_lookup_batch_rows",
    "Rows read together",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 1024),
)


def store_down() -> Unavailable:
    return Unavailable("The online store does not answer now: try again.", reason="ONLINE_STORE_DOWN")


class OnlineRows(Protocol):
    async def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Values of all keys in one round trip. Raises Unavailable ONLINE_STORE_DOWN."""
        ...


class Encoder(Protocol):
    """Writes answers of one plan for the wire."""

    def encode_parts(self, answer: Answer, rows: Sequence[int]) -> list[bytes]:
        """The answer cut into parts of so many rows each."""
        ...

    def encode_applied(self, applied: Sequence[AppliedOffsets]) -> bytes:
        """What makes a part say from which events it is, put behind it."""
        ...


class Catalogs(Protocol):
    def catalog(self, project: str) -> Catalog: ...

    async def after_miss(self, project: str) -> Catalog: ...


@dataclass(slots=True)
class Lookup:
    """What one request asks of a plan; every list and array has one entry per row."""

    entities: Sequence[Sequence[bytes]]
    """Encoded entities, one list per key group of the plan."""
    requests: Columns
    as_of: int
    rows: int
    with_applied_offsets: bool = False


@dataclass(slots=True)
class _Asked:
    lookup: Lookup
    answer: asyncio.Future[bytes]
    give_up_at: float
    """On the loop's clock."""


class SharedRead:
    """Reads of one plan."""

    def __init__(self, plan: ReadPlan, store: OnlineRows, encoder: Callable[[ReadPlan], Encoder]) -> None:
        self.plan = plan
        self._encoder = encoder(plan)
        self._store = store
        self._waiting: list[_Asked] = []
        self._out: list[_Asked] = []
        """The batch that is read now."""
        self._wakes_at = inf
        """When somebody who was asking may have to give up."""
        self._timer: asyncio.TimerHandle | None = None
        self._reading: asyncio.Task[None] | None = None
        self._counters = ReadCounters()
        self._expected = 1.0
        """Requests in a batch, as of late."""

    async def read(self, lookup: Lookup) -> bytes:
        """The encoded answer. Raises Unavailable ONLINE_STORE_DOWN, before the running call's deadline where it has one;
        InvalidArgument when an expression cannot be computed."""
        loop = asyncio.get_running_loop()
        left = seconds_to_answer()
        asked = _Asked(lookup, loop.create_future(), inf if left is None else loop.time() + left)
        self._waiting.append(asked)
        if self._reading is None:
            self._reading = loop.create_task(self._read_all())
        if asked.give_up_at < self._wakes_at:
            self._wake_at(asked.give_up_at)
        return await asked.answer

    async def answer(self, lookup: Lookup) -> Answer:
        """The answer itself, read alone. Raises as `read` does."""
        async with in_time(store_down):
            return await self._lookup([lookup])

    def _wake_at(self, moment: float) -> None:
        """One timer for all who ask: to set one for each, and to take it back, costs a twentieth of a read."""
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = moment
        self._timer = None if moment == inf else asyncio.get_running_loop().call_at(moment, self._give_up)

    def _give_up(self) -> None:
        moment, later = self._wakes_at, inf
        for asked in (*self._out, *self._waiting):
            if asked.answer.done():
                continue
            if asked.give_up_at <= moment:
                asked.answer.set_exception(store_down())
            else:
                later = min(later, asked.give_up_at)
        self._wake_at(later)

    async def _read_all(self) -> None:
        """Batch after batch until nobody waits."""
        try:
            while self._waiting:
                await self._gather()
                batch = self._take()
                self._expected = max(len(batch), self._expected * FORGET)
                if batch:
                    self._out = batch
                    await self._answer(batch)
                    self._out = []
        finally:
            self._reading = None

    async def _gather(self) -> None:
        """Returns when the crowd of late is there, or nobody has come for a while. No timer: a turn takes microseconds."""
        quiet, seen = 0, len(self._waiting)
        while seen < CROWD and quiet < QUIET_TURNS * (self._expected if seen < self._expected else 1):
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) == seen else 0
            seen = len(self._waiting)

    def _take(self) -> list[_Asked]:
        taken = rows = 0
        for asked in self._waiting:
            rows += asked.lookup.rows
            if taken and rows > FULL_ROWS:
                break
            taken += 1
        batch, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return [asked for asked in batch if not asked.answer.done()]

    async def _answer(self, batch: list[_Asked]) -> None:
        lookups = [asked.lookup for asked in batch]
        try:
            whole = await self._lookup(lookups)
            answers = self._encode(lookups, whole)
        except Exception as error:  # noqa: BLE001 - handed to the callers
            if len(batch) > 1 and not isinstance(error, Unavailable):
                # One bad row must not fail the others.
                for one in batch:
                    await self._answer([one])
                return
            for asked in batch:
                if not asked.answer.done():
                    asked.answer.set_exception(error)
            return
        for asked, answer in zip(batch, answers, strict=True):
            if not asked.answer.done():
                asked.answer.set_result(answer)

    def _encode(self, lookups: Sequence[Lookup], whole: Answer) -> list[bytes]:
        answers = self._encoder.encode_parts(whole, [lookup.rows for lookup in lookups])
        if not whole.applied:
            return answers
        low = 0
        for i, lookup in enumerate(lookups):
            if lookup.with_applied_offsets:
                cut = [view.rows(low, low + lookup.rows) for view in whole.applied]
                answers[i] += self._encoder.encode_applied(cut)
            low += lookup.rows
        return answers

    async def _lookup(self, lookups: list[Lookup]) -> Answer:
        plan, began = self.plan, perf_counter()
        if len(lookups) == 1:
            (one,) = lookups
            entities, requests = one.entities, one.requests
            as_of = np.full(one.rows, one.as_of, np.int64)
        else:
            entities = [joined([x.entities[g] for x in lookups]) for g in range(len(plan.key_groups))]
            requests = {
                f.name: (
                    np.concatenate([x.requests[f.name][0] for x in lookups]),
                    np.concatenate([x.requests[f.name][1] for x in lookups]),
                )
                for f in plan.request_fields
            }
            as_of = np.repeat(np.array([x.as_of for x in lookups], np.int64), [x.rows for x in lookups])
        _BATCH.observe(len(as_of))
        blobs = await self._store.read(plan.redis_keys(entities))
        answer = plan.decode(blobs, as_of, requests)
        if any(x.with_applied_offsets for x in lookups):
            answer.applied = plan.applied_offsets(blobs, len(as_of))
        self._counters.count(plan.view_versions, answer.event_times)
        _SECONDS.observe(perf_counter() - began)
        return answer


class OnlineFeatures:
    """The use case: which plan, then through its batcher."""

    def __init__(self, catalogs: Catalogs, store: OnlineRows, encoder: Callable[[ReadPlan], Encoder]) -> None:
        self._encoder = encoder
        self._catalogs = catalogs
        self._store = store
        self._by_name: dict[str, tuple[Catalog, SharedRead]] = {}
        self._reads: OrderedDict[tuple[object, ...], SharedRead] = OrderedDict()

    def recent(self, set_name: str) -> SharedRead | None:
        """What `remember` was told about a feature set's name, unless definitions have changed since."""
        found = self._by_name.get(set_name)
        return (
            found[1]
            if found is not None and self._catalogs.catalog(found[1].plan.project) is found[0]
            else None
        )

    def remember(self, set_name: str, shared: SharedRead) -> None:
        if len(self._by_name) >= PLANS_KEPT:
            self._by_name.clear()
        self._by_name[set_name] = self._catalogs.catalog(shared.plan.project), shared

    async def of_set(self, project: str, set_id: str, version: int) -> SharedRead:
        """Raises NotFound UNKNOWN_FEATURE_SET."""
        return await self._shared(project, ("set", set_id, version))

    async def of_features(self, project: str, features: Sequence[str]) -> SharedRead:
        """Raises NotFound UNKNOWN_VIEW or UNKNOWN_FEATURE."""
        return await self._shared(project, ("features", *features))

    async def _shared(self, project: str, what: tuple[object, ...]) -> SharedRead:
        catalog = self._catalogs.catalog(project)
        key = (project, catalog.revision, *what)
        found = self._reads.get(key)
        if found is not None:
            self._reads.move_to_end(key)
            return found
        try:
            plan = _compile(catalog, what)
        except NotFound:
            fresh = await self._catalogs.after_miss(project)
            if fresh.revision == catalog.revision:
                raise
            return await self._shared(project, what)
        found = self._reads[key] = SharedRead(plan, self._store, self._encoder)
        while len(self._reads) > PLANS_KEPT:
            self._reads.popitem(last=False)
        return found


def _compile(catalog: Catalog, what: tuple[object, ...]) -> ReadPlan:
    if what[0] == "set":
        return plan_of_set(catalog, catalog.feature_set(str(what[1]), int(str(what[2]))))
    return plan_of_features(catalog, [str(w) for w in what[1:]])
