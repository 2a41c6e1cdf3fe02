"""The gateway's stores in memory, for tests of what stands on them. Held to the same contract suites as the real ones."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flywheel_common.arrays import Floats
from flywheel_common.errors import FailedPrecondition, NotFound, Unavailable
from flywheel_inference.convert_events import prediction_records
from flywheel_inference.fallback import CachedPrediction
from flywheel_inference.outcomes import OutcomeRow
from flywheel_inference.prediction_log import LogRecord, LogRows
from flywheel_inference.release import Contract
from flywheel_inference.triton_model import DIGEST, MODEL_FILE


class MemoryPredictions:
    """`prediction.CachedPredictions`."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], CachedPrediction] = {}

    async def get(self, model: str, subject: str) -> CachedPrediction | None:
        return self.held.get((model, subject))


class MemoryState:
    """`serving.KeptState` and `release_loader.Kept`."""

    def __init__(self) -> None:
        self._desired: bytes | None = None
        self._artifacts: dict[str, bytes] = {}
        self._contracts: dict[str, Contract] = {}

    def save_desired(self, content: bytes) -> None:
        self._desired = content

    def load_desired(self) -> bytes | None:
        return self._desired

    def save_artifact(self, sha256: str, content: bytes) -> None:
        self._artifacts[sha256] = content

    def load_artifact(self, sha256: str) -> bytes | None:
        content = self._artifacts.get(sha256)
        return content if content is not None and hashlib.sha256(content).hexdigest() == sha256 else None

    def keep_artifacts(self, wanted: set[str]) -> None:
        self._artifacts = {sha256: content for sha256, content in self._artifacts.items() if sha256 in wanted}

    def save_contract(self, contract: Contract) -> None:
        self._contracts[contract.feature_set] = contract

    def load_contract(self, feature_set: str) -> Contract | None:
        return self._contracts.get(feature_set)


class MemoryModels:
    """`release_loader.ModelControl` and `scoring.ModelServer`. `run` makes [rows] scores of a model file and [rows, inputs];
    it is tried when a model is loaded, and raises ValueError for a file that is no model of so many inputs. `down`: it does
    not answer."""

    def __init__(self, run: Callable[[bytes, Floats], Floats]) -> None:
        self._run = run
        self._loaded: dict[str, tuple[str, bytes]] = {}
        self.down = False

    async def load(self, name: str, config: str, files: Mapping[str, bytes], timeout: float) -> None:
        self._answering()
        declared = json.loads(config)
        file = files[f"file:1/{MODEL_FILE}"]
        self._scores(name, file, np.zeros((1, *declared["input"][0]["dims"]), np.float32))
        self._loaded[name] = declared["parameters"][DIGEST]["string_value"], file

    async def unload(self, name: str, timeout: float) -> None:
        self._answering()
        self._loaded.pop(name, None)

    async def is_loaded(self, name: str, timeout: float) -> bool:
        self._answering()
        return name in self._loaded

    async def loaded_digest(self, name: str, timeout: float) -> str:
        self._answering()
        return self._loaded[name][0] if name in self._loaded else ""

    async def infer(self, name: str, tensor: Floats, timeout: float) -> Floats:
        self._answering()
        if name not in self._loaded:
            raise NotFound(f"There is no model {name}.", reason="MODEL_NOT_LOADED")
        return self._scores(name, self._loaded[name][1], tensor)

    def _scores(self, name: str, file: bytes, tensor: Floats) -> Floats:
        try:
            return self._run(file, tensor)
        except ValueError as error:
            raise FailedPrecondition(f"{name} cannot be run: {error}", reason="MODEL_REFUSED") from None

    def _answering(self) -> None:
        if self.down:
            raise Unavailable("The model server does not answer.", reason="MODEL_SERVER_DOWN")


class MemoryLog:
    """`prediction_log.LogSink`; `stored` is what it took, in order. `down`: it takes nothing."""

    def __init__(self, partitions: int = 4) -> None:
        self._partitions = partitions
        self.stored: list[LogRecord] = []
        self.down = False

    def encode(self, rows: Sequence[LogRows]) -> list[LogRecord]:
        return prediction_records(rows, self._partitions)

    async def publish(self, records: Sequence[LogRecord]) -> int:
        await asyncio.sleep(0)
        if self.down:
            return 0
        self.stored += records
        return len(records)


class MemoryOutcomes:
    """`outcomes.OutcomeSink`; `stored` is what it took, in order, by model. `down`: it takes nothing."""

    def __init__(self) -> None:
        self.stored: list[tuple[str, OutcomeRow]] = []
        self.down = False

    async def record(self, model: str, rows: Sequence[OutcomeRow]) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise Unavailable("Kafka does not answer.", reason="KAFKA_UNAVAILABLE")
        self.stored += [(model, row) for row in rows]
