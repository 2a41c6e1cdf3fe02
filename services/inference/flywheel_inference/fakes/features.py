"""The feature service in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flywheel_common.errors import NotFound, Unavailable
from flywheel_common.scoring.feature_block import NOT_FOUND, NULL, PRESENT, FeatureBlock, FeatureColumn
from flywheel_inference.releases.release import FeatureSetContract, FieldSpec


class MemoryFeatures:
    """`scoring.FeatureLookup` and `models.FeatureSetContracts`: numeric features by join keys. A key that is
    not in `rows` is NOT_FOUND, None is NULL. `down`: calls raise Unavailable."""

    def __init__(
        self,
        contracts: Sequence[FeatureSetContract],
        features: Sequence[FieldSpec],
        rows: Mapping[tuple[object, ...], Sequence[float | None]],
    ) -> None:
        self._contracts = {contract.feature_set: contract for contract in contracts}
        self._features = tuple(features)
        self._rows = rows
        self.down = False

    async def contract(self, feature_set: str, timeout: float = 5.0) -> FeatureSetContract:
        self._check_up()
        if feature_set not in self._contracts:
            raise NotFound(f"{feature_set} does not exist.")
        return self._contracts[feature_set]

    async def online(
        self,
        contract: FeatureSetContract,
        keys: Sequence[tuple[object, ...]],
        fields: Sequence[tuple[object, ...]],
        as_of_micros: int | None,
        timeout: float,
    ) -> FeatureBlock:
        self._check_up()
        columns, statuses = [], []
        for place, spec in enumerate(self._features):
            found = [self._rows[key][place] if key in self._rows else None for key in keys]
            valid = np.array([value is not None for value in found], np.bool_)
            values = np.array([0.0 if value is None else value for value in found])
            columns.append(FeatureColumn(spec.name, spec.data_type, values, valid))
            present = np.where(valid, PRESENT, NULL)
            statuses.append(np.where([key in self._rows for key in keys], present, NOT_FOUND))
        return FeatureBlock(contract.feature_set, tuple(columns), np.array(statuses, np.uint8))

    def _check_up(self) -> None:
        if self.down:
            raise Unavailable("The feature service does not answer.")
