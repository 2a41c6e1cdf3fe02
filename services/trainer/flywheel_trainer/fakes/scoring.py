"""Releases, feature sets and tables of SCORE jobs in memory."""

from __future__ import annotations

from flywheel_common.errors import NotFound
from flywheel_trainer.jobs.errors import UnknownRelease, UnknownTable
from flywheel_trainer.jobs.scoring_ports import ScoredRelease, SetFields, TableShape


class MemoryReleases:
    """`Releases` from the dictionary `known`."""

    def __init__(self) -> None:
        self.known: dict[str, ScoredRelease] = {}

    async def of(self, name: str) -> ScoredRelease:
        if name not in self.known:
            raise UnknownRelease.of(name)
        return self.known[name]


class MemoryFeatureSets:
    """`FeatureSets` from the dictionary `known`."""

    def __init__(self) -> None:
        self.known: dict[str, SetFields] = {}

    async def fields(self, feature_set: str) -> SetFields:
        if feature_set not in self.known:
            raise NotFound(f"{feature_set} does not exist.")
        return self.known[feature_set]


class MemoryShapes:
    """`Tables` from the dictionary `known`."""

    def __init__(self) -> None:
        self.known: dict[str, TableShape] = {}

    async def shape(self, uri: str) -> TableShape:
        if uri not in self.known:
            raise UnknownTable(f"There is no table at {uri}.")
        return self.known[uri]
