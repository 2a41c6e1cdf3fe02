"""Calls of peers whose failures are domain errors."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import grpc

from flywheel_common.grpc.error_details import from_rpc_error

Answer = TypeVar("Answer")


async def answer(peer: str, call: Awaitable[Answer]) -> Answer:
    """The answer of a call; raises the FlywheelError that the peer raised, Unavailable {PEER}_UNAVAILABLE if it does not answer."""
    try:
        return await call
    except grpc.RpcError as error:
        raise from_rpc_error(error, peer=peer) from error
