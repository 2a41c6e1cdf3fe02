"""Triton over its gRPC API, with tritonclient's generated stubs and raw tensors."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from flywheel_common.errors import FlywheelError, NotFound
from flywheel_inference.models.errors import (
    ModelNotLoaded,
    ModelRefused,
    ModelServerDown,
    ModelTimeout,
    WrongShape,
)
from flywheel_inference.models.triton_config import DIGEST, INPUT, SCORE

_NOT_LOADED = ("unknown model", "is not found", "is not ready", "not loaded", "has no available versions")


class TritonModelServer:
    """`models.ModelControl`."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(
            address,
            options=[
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 500),
                ("grpc.enable_retries", 0),
            ],
        )
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._output = pb.ModelInferRequest.InferRequestedOutputTensor(name=SCORE)

    async def close(self) -> None:
        await self._channel.close()

    async def infer(
        self, name: str, tensor: npt.NDArray[np.float32], timeout: float
    ) -> npt.NDArray[np.float32]:
        rows, inputs = tensor.shape
        request = pb.ModelInferRequest(
            model_name=name,
            inputs=[pb.ModelInferRequest.InferInputTensor(name=INPUT, datatype="FP32", shape=(rows, inputs))],
            outputs=[self._output],
            raw_input_contents=[tensor.tobytes()],
        )
        try:
            response = await self._stub.ModelInfer(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise _translated(error, name) from None
        return _scores(response, name, rows)

    async def load(self, name: str, config: str, files: Mapping[str, bytes], timeout: float) -> None:
        request = pb.RepositoryModelLoadRequest(model_name=name)
        request.parameters["config"].string_param = config
        for path, content in files.items():
            request.parameters[path].bytes_param = content
        try:
            await self._stub.RepositoryModelLoad(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise _translated(error, name) from None

    async def unload(self, name: str, timeout: float) -> None:
        try:
            await self._stub.RepositoryModelUnload(
                pb.RepositoryModelUnloadRequest(model_name=name), timeout=timeout
            )
        except grpc.aio.AioRpcError as error:
            translated = _translated(error, name)
            if not isinstance(translated, NotFound):
                raise translated from None

    async def loaded_digest(self, name: str, timeout: float) -> str:
        """Also empty when the model was loaded without a digest, by another program."""
        if not await self.is_loaded(name, timeout):
            return ""
        try:
            response = await self._stub.ModelConfig(pb.ModelConfigRequest(name=name), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            translated = _translated(error, name)
            if isinstance(translated, NotFound):
                return ""
            raise translated from None
        parameters = response.config.parameters
        return str(parameters[DIGEST].string_value) if DIGEST in parameters else ""

    async def is_loaded(self, name: str, timeout: float) -> bool:
        try:
            return bool((await self._stub.ModelReady(pb.ModelReadyRequest(name=name), timeout=timeout)).ready)
        except grpc.aio.AioRpcError as error:
            translated = _translated(error, name)
            if isinstance(translated, NotFound):
                return False
            raise translated from None


def _scores(response: pb.ModelInferResponse, name: str, rows: int) -> npt.NDArray[np.float32]:
    """[rows] scores of a response. Raises WrongShape."""
    raw = response.raw_output_contents[0] if response.raw_output_contents else b""
    found = [f"{output.datatype} {list(output.shape)}" for output in response.outputs]
    if len(raw) != rows * 4 or [output.datatype for output in response.outputs] != ["FP32"]:
        raise WrongShape(
            f"{name} returned {', '.join(found) or 'no output'}: float32 [{rows}, 1] is expected."
        )
    return np.frombuffer(raw, "<f4")


def _translated(error: grpc.aio.AioRpcError, name: str) -> FlywheelError:
    code, details = error.code(), error.details() or ""
    not_loaded = any(words in details for words in _NOT_LOADED)
    if code is grpc.StatusCode.NOT_FOUND or (not_loaded and code is grpc.StatusCode.UNAVAILABLE):
        return ModelNotLoaded(f"Triton has no model {name}: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ModelTimeout(f"Triton did not answer for {name} in time.")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN):
        return ModelServerDown(f"Triton does not answer: {details}")
    return ModelRefused(f"Triton refused {name}: {details}")
