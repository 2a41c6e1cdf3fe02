"""Batching of online reads: requests for the same features that arrive together are read as one batch.

Each read plan has at most one batch in flight; requests that arrive meanwhile form the next one. A batch
waits until it has as many requests as recent batches, or until no request has arrived for a few turns of the
event loop; a lone request waits for four turns. All requests of a batch share one MGET, one decoding, one
evaluation of the expressions and one encoding. Two batches in flight would only be two smaller ones: Redis
answers the commands of a connection in order, and one thread decodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from time import perf_counter
from typing import Protocol

import numpy as np
from prometheus_client import Histogram

from flywheel_common.deadline import in_time, seconds_to_answer
from flywheel_common.errors import Unavailable
from flywheel_feature.encoding.frames import Columns
from flywheel_feature.encoding.same_length_keys import joined
from flywheel_feature.online.errors import store_down
from flywheel_feature.online.read_counters import ReadCounters
from flywheel_feature.online.read_plan import Answer, ReadPlan
from flywheel_feature.windows.applied_offsets import AppliedOffsets

FOREVER = np.iinfo(np.int64).max
MAXIMUM_ROWS = 1000
"""Rows of one request."""
FULL_ROWS = 2000
"""A batch has more rows only if its first request has."""
FULL_REQUESTS = 64
"""A batch with this many requests does not wait for more."""
QUIET_TURNS = 4
"""Turns of the event loop without a new request after which a batch stops waiting.

A gRPC server starts one call every other turn, so requests that were sent together arrive over many turns.
While a batch has fewer requests than recent batches, it waits for this number of turns times the expected
number of requests. Measured with 16 calls in flight: waiting for 2 turns makes batches of 4; for 4 turns, one
batch of 14 and two of one late request each; with this rule batches have 15.7 requests.
"""
EXPECTED_DECAY = 0.9
"""The expected number of requests after a smaller batch, as a share of the number before."""

_SECONDS = Histogram(
    "flywheel_feature_lookup_seconds",
    "Seconds of reading a batch of lookups: store, decoding, expressions",
    buckets=(0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 1.0),
)
_BATCH = Histogram(
    "flywheel_feature_lookup_batch_rows",
    "Rows read together",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 1024),
)


class OnlineRows(Protocol):
    """Values of the online store by key."""

    async def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Values of all keys in one round trip, None for an absent one. Raises OnlineStoreDown."""
        ...


class Encoder(Protocol):
    """Encodes answers of one plan for the wire."""

    def encode_parts(self, answer: Answer, rows: Sequence[int]) -> list[bytes]:
        """The answer in parts of the given numbers of rows, each encoded."""
        ...

    def encode_applied(self, applied: Sequence[AppliedOffsets]) -> bytes:
        """The applied offsets of a part, to be appended to it."""
        ...


@dataclass(slots=True)
class Lookup:
    """The rows that one request reads; every list and array has one entry per row."""

    entities: Sequence[Sequence[bytes]]
    """Encoded entities, one list per key group of the plan."""
    requests: Columns
    """Request fields."""
    as_of: int
    """Microseconds."""
    rows: int
    with_applied_offsets: bool = False
    hides_later: bool = False
    """The request names its as_of: rows of batch views that are later are hidden. A read of now does not
    compare, because rows are written when they are valid by the clock of the writer; a clock that is behind
    would hide them."""


@dataclass(slots=True)
class _Pending:
    """A lookup that waits for its answer."""

    lookup: Lookup
    answer: asyncio.Future[bytes]
    deadline: float
    """On the event loop's clock; infinite without a deadline."""


class SharedRead:
    """Reads of one plan, in batches."""

    def __init__(self, plan: ReadPlan, store: OnlineRows, encoder: Callable[[ReadPlan], Encoder]) -> None:
        self.plan = plan
        self._encoder = encoder(plan)
        self._store = store
        self._waiting: list[_Pending] = []
        self._in_flight: list[_Pending] = []
        self._next_deadline = inf
        """When the timer fires."""
        self._timer: asyncio.TimerHandle | None = None
        self._reading: asyncio.Task[None] | None = None
        self._counters = ReadCounters()
        self._expected = 1.0
        """Requests of the next batch, from the sizes of recent ones."""

    async def read(self, lookup: Lookup) -> bytes:
        """The encoded answer.

        Raises OnlineStoreDown, before the deadline of the running call if it has one; InvalidArgument when an
        expression cannot be computed.
        """
        loop = asyncio.get_running_loop()
        left = seconds_to_answer()
        pending = _Pending(lookup, loop.create_future(), inf if left is None else loop.time() + left)
        self._waiting.append(pending)
        if self._reading is None:
            self._reading = loop.create_task(self._read_all())
        if pending.deadline < self._next_deadline:
            self._set_timer(pending.deadline)
        return await pending.answer

    async def answer(self, lookup: Lookup) -> Answer:
        """The answer before encoding, read without others. Raises as `read`."""
        async with in_time(store_down):
            return await self._lookup([lookup])

    def _set_timer(self, moment: float) -> None:
        """Set the one timer of all pending lookups; a timer for each would cost a twentieth of a read."""
        if self._timer is not None:
            self._timer.cancel()
        self._next_deadline = moment
        self._timer = None if moment == inf else asyncio.get_running_loop().call_at(moment, self._expire)

    def _expire(self) -> None:
        """Fail the lookups whose deadline is reached, and set the timer for the next deadline."""
        moment, later = self._next_deadline, inf
        for pending in (*self._in_flight, *self._waiting):
            if pending.answer.done():
                continue
            if pending.deadline <= moment:
                pending.answer.set_exception(store_down())
            else:
                later = min(later, pending.deadline)
        self._set_timer(later)

    async def _read_all(self) -> None:
        """Read batch after batch until no lookup waits."""
        try:
            while self._waiting:
                await self._wait_for_more()
                batch = self._take()
                self._expected = max(len(batch), self._expected * EXPECTED_DECAY)
                if batch:
                    self._in_flight = batch
                    await self._answer(batch)
                    self._in_flight = []
        finally:
            self._reading = None

    async def _wait_for_more(self) -> None:
        """Wait until the batch is as large as expected or no request arrives; turns take microseconds."""
        quiet, seen = 0, len(self._waiting)
        while seen < FULL_REQUESTS and quiet < QUIET_TURNS * (self._expected if seen < self._expected else 1):
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) == seen else 0
            seen = len(self._waiting)

    def _take(self) -> list[_Pending]:
        """Remove a batch from the waiting lookups; those that have failed since are left out."""
        taken = rows = 0
        for pending in self._waiting:
            rows += pending.lookup.rows
            if taken and rows > FULL_ROWS:
                break
            taken += 1
        batch, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return [pending for pending in batch if not pending.answer.done()]

    async def _answer(self, batch: list[_Pending]) -> None:
        lookups = [pending.lookup for pending in batch]
        try:
            answers = self._encode(lookups, await self._lookup(lookups))
        except Exception as error:  # noqa: BLE001 - set on the futures, so that the callers raise it
            if len(batch) > 1 and not isinstance(error, Unavailable):
                # A request that fails must not fail the others: read each alone.
                for pending in batch:
                    await self._answer([pending])
                return
            for pending in batch:
                if not pending.answer.done():
                    pending.answer.set_exception(error)
            return
        for pending, answer in zip(batch, answers, strict=True):
            if not pending.answer.done():
                pending.answer.set_result(answer)

    def _encode(self, lookups: Sequence[Lookup], answer: Answer) -> list[bytes]:
        """The encoded answer of each lookup."""
        parts = self._encoder.encode_parts(answer, [lookup.rows for lookup in lookups])
        if not answer.applied:
            return parts
        low = 0
        for i, lookup in enumerate(lookups):
            if lookup.with_applied_offsets:
                own = [view.rows(low, low + lookup.rows) for view in answer.applied]
                parts[i] += self._encoder.encode_applied(own)
            low += lookup.rows
        return parts

    async def _lookup(self, lookups: list[Lookup]) -> Answer:
        """One answer with the rows of all lookups."""
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
        valid_until = None
        if any(x.hides_later for x in lookups):
            limits = [x.as_of if x.hides_later else FOREVER for x in lookups]
            valid_until = np.repeat(np.array(limits, np.int64), [x.rows for x in lookups])
        answer = plan.decode(blobs, as_of, requests, valid_until)
        if any(x.with_applied_offsets for x in lookups):
            answer.applied = plan.applied_offsets(blobs, len(as_of))
        self._counters.count(plan.view_versions, answer.event_times)
        _SECONDS.observe(perf_counter() - began)
        return answer
