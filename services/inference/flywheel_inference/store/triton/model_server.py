"""Triton over its gRPC API, with tritonclient's generated stubs and raw tensors."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from flywheel_common.arrays import Array
from flywheel_common.errors import FlywheelError, NotFound
from flywheel_common.scoring.errors import WrongShape
from flywheel_common.scoring.input_tensors import Tensors
from flywheel_common.scoring.output_values import output_values
from flywheel_common.signature import OutputSpec
from flywheel_common.tensors import packed_texts
from flywheel_inference.models.errors import (
    DigestMismatch,
    ModelNotLoaded,
    ModelRefused,
    ModelServerDown,
    ModelTimeout,
)
from flywheel_inference.models.model_file import ModelFile
from flywheel_inference.models.triton_config import DIGEST
from flywheel_inference.store.triton.load_process import send_in_process
from flywheel_inference.store.triton.load_request import request_head

_TYPES = {"|b1": "BOOL", "<i8": "INT64", "<f4": "FP32", "<f8": "FP64", "|O": "BYTES"}
"""numpy type of a tensor → its name in the protocol."""
_DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "FP64": np.dtype("<f8")}
_NOT_LOADED = ("unknown model", "is not found", "is not ready", "not loaded", "has no available versions")

LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"
SENT_HERE_BYTES = 1024 * 1024
"""Largest model file that this process sends itself, in about a millisecond. Starting a process takes 100 ms
of CPU, which is too much for many small models that are loaded at once."""


class TritonModelServer:
    """`models.ModelControl`."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = grpc.aio.insecure_channel(
            address,
            options=[
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 500),
                ("grpc.enable_retries", 0),
                # A machine that vanished closes no connection: its calls would time out until TCP gives up.
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 2_000),
            ],
        )
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._load_serialized = self._channel.unary_unary(LOAD)

    async def close(self) -> None:
        await self._channel.close()

    async def infer(self, name: str, tensors: Tensors, output: OutputSpec, timeout: float) -> Array:
        request = pb.ModelInferRequest(
            model_name=name,
            inputs=[_described(tensor_name, tensor) for tensor_name, tensor in tensors.items()],
            outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=output.tensor)],
            raw_input_contents=[_raw(tensor) for tensor in tensors.values()],
        )
        try:
            response = await self._stub.ModelInfer(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise _translated(error.code(), error.details(), name) from None
        rows = len(next(iter(tensors.values())))
        return output_values(output, _array(response, name), rows)

    async def load(
        self, name: str, config: str, files: Mapping[str, bytes], model: ModelFile, timeout: float
    ) -> None:
        size = (await asyncio.to_thread(model.path.stat)).st_size
        head = request_head(name, config, files, size)
        if size > SENT_HERE_BYTES:
            code, details = await send_in_process(self._address, LOAD, head, model, timeout)
            if code is grpc.StatusCode.DATA_LOSS:
                raise _damaged(name)
            if code is not grpc.StatusCode.OK:
                raise _translated(code, details, name)
            return
        content = await asyncio.to_thread(model.path.read_bytes)
        if hashlib.sha256(content).hexdigest() != model.sha256:
            raise _damaged(name)
        try:
            await self._load_serialized(head + content, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise _translated(error.code(), error.details(), name) from None

    async def unload(self, name: str, timeout: float) -> None:
        try:
            await self._stub.RepositoryModelUnload(
                pb.RepositoryModelUnloadRequest(model_name=name), timeout=timeout
            )
        except grpc.aio.AioRpcError as error:
            translated = _translated(error.code(), error.details(), name)
            if not isinstance(translated, NotFound):
                raise translated from None

    async def loaded_digest(self, name: str, timeout: float) -> str:
        """Also empty when the model was loaded without a digest, by another program."""
        if not await self.is_loaded(name, timeout):
            return ""
        try:
            response = await self._stub.ModelConfig(pb.ModelConfigRequest(name=name), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            translated = _translated(error.code(), error.details(), name)
            if isinstance(translated, NotFound):
                return ""
            raise translated from None
        parameters = response.config.parameters
        return str(parameters[DIGEST].string_value) if DIGEST in parameters else ""

    async def check_live(self, timeout: float) -> None:
        try:
            await self._stub.ServerLive(pb.ServerLiveRequest(), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise _translated(error.code(), error.details(), "the server") from None

    async def is_loaded(self, name: str, timeout: float) -> bool:
        try:
            return bool((await self._stub.ModelReady(pb.ModelReadyRequest(name=name), timeout=timeout)).ready)
        except grpc.aio.AioRpcError as error:
            translated = _translated(error.code(), error.details(), name)
            if isinstance(translated, NotFound):
                return False
            raise translated from None


def _damaged(name: str) -> DigestMismatch:
    return DigestMismatch(f"The stored model file of {name} has changed since it was verified.")


def _described(name: str, tensor: Array) -> pb.ModelInferRequest.InferInputTensor:
    # Triton has no tensor of shape [rows]: the config reshapes [rows, 1].
    shape = tensor.shape if tensor.ndim > 1 else (*tensor.shape, 1)
    return pb.ModelInferRequest.InferInputTensor(name=name, datatype=_TYPES[tensor.dtype.str], shape=shape)


def _raw(tensor: Array) -> bytes:
    return packed_texts(tensor) if tensor.dtype == object else tensor.tobytes()


def _array(response: pb.ModelInferResponse, name: str) -> Array:
    """The only output tensor of a response. Raises WrongShape."""
    outputs, raw = response.outputs, response.raw_output_contents
    if len(outputs) == 1 and len(raw) == 1:
        content, shape = raw[0], tuple(outputs[0].shape)
        dtype = _DTYPES.get(outputs[0].datatype)
        if dtype is not None and len(content) == math.prod(shape) * dtype.itemsize:
            return np.frombuffer(content, dtype).reshape(shape)
    found = [f"{output.datatype} {list(output.shape)}" for output in outputs]
    raise WrongShape(f"{name} returned {', '.join(found) or 'no output'}: one float tensor is expected.")


def _translated(code: grpc.StatusCode, details: str | None, name: str) -> FlywheelError:
    details = details or ""
    not_loaded = any(words in details for words in _NOT_LOADED)
    if code is grpc.StatusCode.NOT_FOUND or (not_loaded and code is grpc.StatusCode.UNAVAILABLE):
        return ModelNotLoaded(f"Triton has no model {name}: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ModelTimeout(f"Triton did not answer for {name} in time.")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN):
        return ModelServerDown(f"Triton does not answer: {details}")
    return ModelRefused(f"Triton refused {name}: {details}")
