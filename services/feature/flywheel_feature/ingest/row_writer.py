"""Writing rows of a batch view to the online store, for pushes and materializations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import BatchView, Field, View
from flywheel_feature.definitions.ttl import row_lifetime_ms
from flywheel_feature.encoding.frames import Columns
from flywheel_feature.encoding.keys import entity_keys, key_prefix
from flywheel_feature.encoding.row_encoding import RowLayout


class RowStore(Protocol):
    """Rows of batch views by key."""

    async def write_rows(self, keys: Sequence[bytes], rows: Sequence[bytes], lifetime_ms: int) -> int:
        """Write each row unless the stored one has an equal or later (event time, created time).

        Returns how many were written. Every write is atomic per key and may be repeated. A row expires after
        `lifetime_ms`, never for 0. Raises OnlineStoreDown; some rows may have been written then.
        """
        ...


class RowWriter:
    """Encodes rows of one batch view and writes them."""

    def __init__(self, catalog: Catalog, view: View) -> None:
        assert isinstance(view.kind, BatchView)
        self._keys: tuple[Field, ...] = catalog.entity(view.entity).join_keys
        self._prefix = key_prefix(view)
        self._layout = RowLayout(view.features)
        self._lifetime_ms = row_lifetime_ms(view.ttl)

    async def write(
        self, keys: Columns, features: Columns, event: np.ndarray, created: np.ndarray, online: RowStore
    ) -> int:
        """Write rows without null keys; returns how many were newer than the stored ones."""
        names = entity_keys([(k.data_type, keys[k.name][0].tolist()) for k in self._keys])
        rows = self._layout.encode(features, event, created)
        return await online.write_rows([self._prefix + n for n in names], rows, self._lifetime_ms)
