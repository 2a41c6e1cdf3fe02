"""One of the model servers that run the same models: what this gateway verified on it, and its health."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from flywheel_common.arrays import Array
from flywheel_common.errors import FlywheelError
from flywheel_common.scoring.input_tensors import Tensors
from flywheel_common.scoring.output_values import output_values, row_shapes
from flywheel_common.signature import OutputSpec
from flywheel_common.tasks import TaskGroup
from flywheel_common.telemetry.logs import get_logger
from flywheel_inference.models.errors import (
    GoldenRowsMismatch,
    ModelNotLoaded,
    ModelRefused,
    ModelServerDown,
    ModelTimeout,
    NoGoldenRows,
)
from flywheel_inference.models.model_file import ModelFile
from flywheel_inference.models.ports import ModelControl, ModelHolds
from flywheel_inference.models.triton_config import Backend, load_request
from flywheel_inference.releases.release import ArtifactSpec, ReleaseSpec

log = get_logger(__name__)

LOAD_SECONDS = 60.0
"""Time limit of loading or unloading one model."""
CHECK_SECONDS = 1.0
"""Time limit of each call of a health check."""
TIMEOUTS_IN_A_ROW = 3
"""A replica that lets so many calls in a row time out gets no more until its next health check."""


class Replica:
    """A model server with the models that this gateway has verified on it. `up`: its last call or health
    check succeeded. `in_flight`: calls of `infer` that are running."""

    def __init__(
        self,
        address: str,
        server: ModelControl,
        holds: ModelHolds,
        *,
        backend: Literal["auto", "onnxruntime", "python"] = "auto",
        instances: int = 1,
    ) -> None:
        self.address = address
        self.server = server
        self.holds = holds
        self.up = True
        self.in_flight = 0
        self.models: set[str] = set()
        self._backend: Backend | None = None if backend == "auto" else backend
        self._instances = instances
        self._timeouts = 0
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def infer(self, name: str, tensors: Tensors, output: OutputSpec, timeout: float) -> Array:
        """Runs a model; a failure changes what is known about the replica. Raises as `ModelServer.infer`."""
        self.in_flight += 1
        try:
            found = await self.server.infer(name, tensors, output, timeout)
        except ModelNotLoaded:
            self.models.discard(name)
            raise
        except ModelServerDown as error:
            self._went_down(error)
            raise
        except ModelTimeout as error:
            self._timeouts += 1
            if self._timeouts >= TIMEOUTS_IN_A_ROW:
                self._went_down(error)
            raise
        finally:
            self.in_flight -= 1
        self._timeouts = 0
        return found

    async def check(self) -> None:
        """Updates `up`, and `models` by what the server still has. Does not raise."""
        try:
            await self.server.check_live(CHECK_SECONDS)
            async with TaskGroup() as group:
                for name in self.models:
                    group.create_task(self._check_model(name))
        except* FlywheelError as group_of_errors:
            self._went_down(group_of_errors)
        else:
            if not self.up:
                log.info("model server answers again", replica=self.address)
            self.up, self._timeouts = True, 0

    async def load(
        self, spec: ReleaseSpec, artifact: ArtifactSpec, model_file: Callable[[], Awaitable[ModelFile]]
    ) -> None:
        """Returns when this server reproduces the golden rows of a release. `model_file` is called when the
        server does not have the model. Raises a FlywheelError."""
        name = spec.triton_model
        async with self._locks[name]:
            await self.holds.hold(name)
            if await self.server.loaded_digest(name, 5.0) != artifact.sha256:
                self.models.discard(name)
                await self._load(spec, await model_file())
            try:
                await self._check_golden(spec)
            except FlywheelError as error:
                if not error.retryable:
                    self.models.discard(name)
                    await self.server.unload(name, LOAD_SECONDS)
                raise
            self.models.add(name)

    async def unload(self, name: str) -> bool:
        """Unloads a model that no other gateway holds, which frees its memory; else returns False. Raises
        Unavailable, DeadlineExceeded."""
        async with self._locks[name]:
            self.models.discard(name)
            if not await self.holds.drop(name):
                return False
            try:
                await self.server.unload(name, LOAD_SECONDS)
            finally:
                await self.holds.unloaded(name)
            return True

    def _went_down(self, cause: Exception) -> None:
        if self.up:
            log.warning("model server unavailable", replica=self.address, cause=str(cause))
        self.up = False

    async def _check_model(self, name: str) -> None:
        if not await self.server.is_loaded(name, CHECK_SECONDS) and name in self.models:
            log.warning("model lost by the model server", replica=self.address, model=name)
            self.models.discard(name)

    async def _load(self, spec: ReleaseSpec, model: ModelFile) -> None:
        for backend in ("onnxruntime", "python") if self._backend is None else (self._backend,):
            try:
                await self._load_with(backend, spec, model)
            except FlywheelError as error:
                # Triton's message when it was built without the native ONNX Runtime backend.
                if backend == "onnxruntime" and self._backend is None and "backend library" in error.message:
                    continue
                raise
            self._backend = backend
            log.info("model loaded", model=spec.triton_model, replica=self.address, backend=backend)
            return

    async def _load_with(self, backend: Backend, spec: ReleaseSpec, model: ModelFile) -> None:
        """Golden rows may have the output in another shape of its kind than the graph, and the ONNX Runtime
        backend needs the graph's: a refusal counts when all shapes are refused."""
        golden, placement = spec.golden.output, spec.serving.placement
        placement = replace(placement, instances=placement.instances or self._instances)
        shapes = [golden.shape[1:]]
        if backend == "onnxruntime":
            shapes += [shape for shape in row_shapes(spec.signature.output) if shape != golden.shape[1:]]
        refusals = []
        for shape in shapes:
            config, files = load_request(
                spec.triton_model,
                spec.signature,
                np.empty((0, *shape), golden.dtype),
                model.sha256,
                backend=backend,
                placement=placement,
            )
            try:
                return await self.server.load(spec.triton_model, config, files, model, LOAD_SECONDS)
            except ModelRefused as error:
                refusals.append(error)
        raise refusals[0]

    async def _check_golden(self, spec: ReleaseSpec) -> None:
        """Also warms the model up: its first calls are the golden rows, not those of callers. As many calls
        as the model has instances run at once, so that each instance has one."""
        golden, output = spec.golden, spec.signature.output
        rows = len(golden.output)
        if rows == 0:
            raise NoGoldenRows(
                f"{spec.model_version} has no golden rows: register a version with golden rows."
            )
        expected = output_values(output, golden.output, rows)
        placement = spec.serving.placement
        parts = [
            slice(start, start + placement.max_batch_rows)
            for start in range(0, rows, placement.max_batch_rows)
        ]
        instances = max(placement.instances or self._instances, 1)
        parts *= math.ceil(instances / len(parts))

        async def check(part: slice) -> None:
            tensors = {name: tensor[part] for name, tensor in golden.tensors.items()}
            found = await self.server.infer(spec.triton_model, tensors, output, LOAD_SECONDS)
            worst = np.abs(found.astype(np.float64) - expected[part]).max()
            # Written so that NaN fails.
            if not worst <= golden.tolerance:
                raise GoldenRowsMismatch(
                    f"Triton's output for the golden rows of {spec.model_version} differs by up to "
                    f"{worst:.3g}; {golden.tolerance:.3g} is allowed."
                )

        for first in range(0, len(parts), instances):
            calls = map(check, parts[first : first + instances])
            for ended in await asyncio.gather(*calls, return_exceptions=True):
                if ended is not None:
                    raise ended
