"""A model server in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import numpy as np

from flywheel_common.arrays import Floats
from flywheel_inference.models.errors import ModelNotLoaded, ModelRefused, ModelServerDown
from flywheel_inference.models.triton_config import DIGEST, MODEL_FILE


class MemoryModelServer:
    """`models.ModelControl`. `run` computes [rows] scores from a model file and [rows, inputs].

    `run` is tried when a model is loaded; it raises ValueError when the file is no model with that many
    inputs. `down`: calls raise Unavailable.
    """

    def __init__(self, run: Callable[[bytes, Floats], Floats]) -> None:
        self._run = run
        self._loaded: dict[str, tuple[str, bytes]] = {}
        self.down = False

    async def load(self, name: str, config: str, files: Mapping[str, bytes], timeout: float) -> None:
        self._check_up()
        declared = json.loads(config)
        file = files[f"file:1/{MODEL_FILE}"]
        self._scores(name, file, np.zeros((1, *declared["input"][0]["dims"]), np.float32))
        self._loaded[name] = declared["parameters"][DIGEST]["string_value"], file

    async def unload(self, name: str, timeout: float) -> None:
        self._check_up()
        self._loaded.pop(name, None)

    async def is_loaded(self, name: str, timeout: float) -> bool:
        self._check_up()
        return name in self._loaded

    async def loaded_digest(self, name: str, timeout: float) -> str:
        self._check_up()
        return self._loaded[name][0] if name in self._loaded else ""

    async def infer(self, name: str, tensor: Floats, timeout: float) -> Floats:
        self._check_up()
        if name not in self._loaded:
            raise ModelNotLoaded(f"There is no model {name}.")
        return self._scores(name, self._loaded[name][1], tensor)

    def _scores(self, name: str, file: bytes, tensor: Floats) -> Floats:
        try:
            return self._run(file, tensor)
        except ValueError as error:
            raise ModelRefused(f"{name} cannot be run: {error}") from None

    def _check_up(self) -> None:
        if self.down:
            raise ModelServerDown("The model server does not answer.")
