"""TODO docstring."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import numpy as np

from flywheel_common.arrays import Floats
from flywheel_common.errors import FailedPrecondition, NotFound, Unavailable
from flywheel_inference.models.triton_config import DIGEST, MODEL_FILE


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
