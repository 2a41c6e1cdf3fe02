"""A model server in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping

import numpy as np

from flywheel_common.arrays import Array
from flywheel_common.scoring.input_tensors import Tensors
from flywheel_common.scoring.output_values import output_values
from flywheel_common.signature import OutputSpec
from flywheel_inference.models.errors import DigestMismatch, ModelNotLoaded, ModelRefused, ModelServerDown
from flywheel_inference.models.model_file import ModelFile
from flywheel_inference.models.triton_config import DIGEST

_DTYPES = {
    "TYPE_BOOL": np.dtype("?"),
    "TYPE_INT64": np.dtype("<i8"),
    "TYPE_FP32": np.dtype("<f4"),
    "TYPE_FP64": np.dtype("<f8"),
}


class MemoryModelServer:
    """`models.ModelControl`. `run` computes the output tensor of a name from a model file and its inputs.

    `run` is tried when a model is loaded; it raises ValueError when the file is no model with these tensors.
    `down`: calls raise Unavailable. `loads`: models loaded so far.
    """

    def __init__(self, run: Callable[[bytes, Tensors, str], Array]) -> None:
        self._run = run
        self._loaded: dict[str, tuple[str, bytes, int]] = {}
        self.down = False
        self.loads = 0

    async def load(
        self, name: str, config: str, files: Mapping[str, bytes], model: ModelFile, timeout: float
    ) -> None:
        self._check_up()
        declared = json.loads(config)
        file = model.path.read_bytes()
        if hashlib.sha256(file).hexdigest() != model.sha256:
            raise DigestMismatch(f"The file of {name} does not have its digest.")
        output = declared["output"][0]
        found = self._output(name, file, {t["name"]: _one_row(t) for t in declared["input"]}, output["name"])
        if found.dtype != _DTYPES[output["data_type"]]:
            raise ModelRefused(f"{name} returns {found.dtype}, its config has {output['data_type']}.")
        self.loads += 1
        digest = declared["parameters"][DIGEST]["string_value"]
        self._loaded[name] = digest, file, declared["max_batch_size"]

    async def unload(self, name: str, timeout: float) -> None:
        self._check_up()
        self._loaded.pop(name, None)

    async def check_live(self, timeout: float) -> None:
        self._check_up()

    async def is_loaded(self, name: str, timeout: float) -> bool:
        self._check_up()
        return name in self._loaded

    async def loaded_digest(self, name: str, timeout: float) -> str:
        self._check_up()
        return self._loaded[name][0] if name in self._loaded else ""

    async def infer(self, name: str, tensors: Tensors, output: OutputSpec, timeout: float) -> Array:
        self._check_up()
        if name not in self._loaded:
            raise ModelNotLoaded(f"There is no model {name}.")
        _, file, max_rows = self._loaded[name]
        rows = len(next(iter(tensors.values())))
        if rows > max_rows:
            raise ModelRefused(f"{name} gets at most {max_rows} rows at once.")
        return output_values(output, self._output(name, file, tensors, output.tensor), rows)

    def _output(self, name: str, file: bytes, tensors: Tensors, output: str) -> Array:
        try:
            return self._run(file, tensors, output)
        except ValueError as error:
            raise ModelRefused(f"{name} cannot be run: {error}") from None

    def _check_up(self) -> None:
        if self.down:
            raise ModelServerDown("The model server does not answer.")


def _one_row(tensor: Mapping[str, object]) -> Array:
    """A tensor of the config with one row of zeros or empty texts."""
    dims: list[int] = [] if "reshape" in tensor else tensor["dims"]  # type: ignore[assignment]
    if tensor["data_type"] == "TYPE_STRING":
        return np.full((1, *dims), "", object)
    return np.zeros((1, *dims), _DTYPES[str(tensor["data_type"])])
