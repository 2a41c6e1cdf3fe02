"""An unmodified tritonclient for a gateway, and its inputs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc
import tritonclient.grpc.aio

from tests.support.servers.inference import Gateway

Input = tritonclient.grpc.InferInput


def tensor(name: str, values: npt.NDArray[Any], datatype: str) -> Input:
    made = Input(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def texts(name: str, *values: str) -> Input:
    return tensor(name, np.array([v.encode() for v in values], object), "BYTES")


@asynccontextmanager
async def triton_client(gateway: Gateway) -> AsyncIterator[tritonclient.grpc.aio.InferenceServerClient]:
    async with tritonclient.grpc.aio.InferenceServerClient(f"127.0.0.1:{gateway.server.port}") as client:
        yield client
