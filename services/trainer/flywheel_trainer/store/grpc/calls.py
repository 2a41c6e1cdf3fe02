"""Calls of other services whose failures become domain errors."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import grpc

from flywheel_common.grpc.error_details import from_rpc_error

Response = TypeVar("Response")


async def response_of(peer: str, call: Awaitable[Response]) -> Response:
    """The response of a call.

    Raises the error that the peer raised, and PeerUnavailable if it does not answer.
    """
    try:
        return await call
    except grpc.RpcError as error:
        raise from_rpc_error(error, peer=peer) from error
