"""A gRPC server with the interceptors of a service, which returns prepared bytes.

python -m bench.echo ADDRESS METHOD=FILE …
"""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc

from flywheel_common.config import ServiceSettings
from flywheel_common.grpc.server import Server
from flywheel_common.process.runtime import main

SERVICE = "flywheel.bench.v1.EchoService"


def add_answers(answers: dict[str, str], server: Any) -> None:
    """As a generated `add_…Servicer_to_server`: each method returns its bytes for any request."""

    def handler(path: str) -> Any:
        answer = Path(path).read_bytes()

        async def call(_: bytes, __: Any) -> bytes:
            return answer

        return grpc.unary_unary_rpc_method_handler(call, bytes, bytes)

    handlers = {name: handler(path) for name, path in answers.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


async def build(settings: ServiceSettings, _: AsyncExitStack) -> Server:
    answers = dict(a.split("=", 1) for a in sys.argv[2:])
    server = Server(settings, servicers=[(add_answers, answers)], full_service_names=[SERVICE])
    server.health.set_ready()
    return server


if __name__ == "__main__":
    main("echo", ServiceSettings(listen=sys.argv[1], metrics_listen=""), build)
