"""GetOnlineFeatures: requests that come together are read together.

Per plan, one batch is out at a time for as long as Redis answers at once; what arrives meanwhile forms the next. A lone request
leaves immediately, and a crowd shares one MGET, one decode and one evaluation of the expressions.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from prometheus_client import Counter, Histogram

from flywheel_common.errors import NotFound, Unavailable
from flywheel_feature.applied_offsets import applied_offsets
from flywheel_feature.catalog import Catalog
from flywheel_feature.frames import Columns
from flywheel_feature.read_plan import Answer, Ints, ReadPlan, plan_of_features, plan_of_set

MAXIMUM_ROWS = 1000
BATCH_ROWS = 2000
OUT_AT_ONCE = 2
PLANS_KEPT = 256

_SECONDS = Histogram(
    "flywheel_feature_lookup_seconds", "Seconds of an online lookup inside the service",
    buckets=(0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 1.0),
)  # fmt: skip
_BATCH = Histogram(
    "flywheel_feature_lookup_batch_rows",
    "Rows read together",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 1024),
)
_VALUES = Counter("flywheel_feature_online_rows", "Rows of a view looked up online", ["view", "result"])


class OnlineRows(Protocol):
    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of all keys in one round trip. Raises Unavailable ONLINE_STORE_DOWN."""
        ...


class Encoder(Protocol):
    """Writes answers of one plan for the wire."""

    def encode(self, answer: Answer) -> bytes: ...


class Catalogs(Protocol):
    def catalog(self, project: str) -> Catalog: ...

    async def after_miss(self, project: str) -> Catalog: ...


@dataclass(slots=True)
class Lookup:
    """What one request asks of a plan; every list and array has one entry per row."""

    entities: list[list[bytes]]
    """Encoded entities, one list per key group of the plan."""
    requests: Columns
    as_of: Ints
    with_applied_offsets: bool = False


class SharedRead:
    """Reads of one plan."""

    def __init__(self, plan: ReadPlan, store: OnlineRows, encoder: Callable[[ReadPlan], Encoder]) -> None:
        self.plan = plan
        self.encoder = encoder(plan)
        self._store = store
        self._waiting: list[tuple[Lookup, asyncio.Future[Answer]]] = []
        self._out = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._hits = [
            (_VALUES.labels(s.view.id, "hit"), _VALUES.labels(s.view.id, "miss")) for s in plan.stored
        ]  # fmt: skip

    async def read(self, lookup: Lookup) -> Answer:
        """Raises Unavailable ONLINE_STORE_DOWN; InvalidArgument when an expression cannot be computed."""
        with _SECONDS.time():
            return await self._submit(lookup)

    def _submit(self, lookup: Lookup) -> asyncio.Future[Answer]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((lookup, future))
        if len(self._waiting) == 1 and self._out < OUT_AT_ONCE:
            # After the callbacks of this turn: requests that arrived together go together.
            loop.call_soon(self._launch)
        return future

    def _launch(self) -> None:
        while self._waiting and self._out < OUT_AT_ONCE:
            taken, rows = 0, 0
            while taken < len(self._waiting) and (
                taken == 0 or rows + len(self._waiting[taken][0].as_of) <= BATCH_ROWS
            ):
                rows += len(self._waiting[taken][0].as_of)
                taken += 1
            batch, self._waiting = self._waiting[:taken], self._waiting[taken:]
            batch = [b for b in batch if not b[1].done()]
            if not batch:
                continue
            self._out += 1
            task = asyncio.get_running_loop().create_task(self._read(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _read(self, batch: list[tuple[Lookup, asyncio.Future[Answer]]]) -> None:
        try:
            await self._answer(batch)
        finally:
            self._out -= 1
            self._launch()

    async def _answer(self, batch: list[tuple[Lookup, asyncio.Future[Answer]]]) -> None:
        try:
            whole = await self._lookup([lookup for lookup, _ in batch])
        except Exception as error:  # noqa: BLE001 - handed to the callers
            if len(batch) > 1 and not isinstance(error, Unavailable):
                # One bad row must not fail the others.
                for one in batch:
                    await self._answer([one])
                return
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        low = 0
        for lookup, future in batch:
            high = low + len(lookup.as_of)
            if not future.done():
                part = whole.rows(low, high) if len(batch) > 1 else whole
                if part.applied and not lookup.with_applied_offsets:
                    part.applied = ()
                future.set_result(part)
            low = high

    async def _lookup(self, lookups: list[Lookup]) -> Answer:
        plan = self.plan
        if len(lookups) == 1:
            merged = lookups[0]
        else:
            entities = [[e for x in lookups for e in x.entities[g]] for g in range(len(plan.key_groups))]
            requests: Columns = {
                f.name: (
                    np.concatenate([x.requests[f.name][0] for x in lookups]),
                    np.concatenate([x.requests[f.name][1] for x in lookups]),
                )
                for f in plan.request_fields
            }
            merged = Lookup(
                entities,
                requests,
                np.concatenate([x.as_of for x in lookups]),
                any(x.with_applied_offsets for x in lookups),
            )
        _BATCH.observe(len(merged.as_of))
        blobs = await self._store.read(plan.redis_keys(merged.entities))
        answer = plan.decode(blobs, merged.as_of, merged.requests)
        if merged.with_applied_offsets:
            answer.applied = applied_offsets(plan.stored, blobs, len(merged.as_of))
        for (hit, miss), times in zip(self._hits, answer.event_times, strict=True):
            missed = int(np.count_nonzero(times == 0))
            hit.inc(len(times) - missed)
            miss.inc(missed)
        return answer


class OnlineFeatures:
    """The use case: which plan, then through its batcher."""

    def __init__(self, catalogs: Catalogs, store: OnlineRows, encoder: Callable[[ReadPlan], Encoder]) -> None:
        self._encoder = encoder
        self._catalogs = catalogs
        self._store = store
        self._reads: OrderedDict[tuple[object, ...], SharedRead] = OrderedDict()

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
