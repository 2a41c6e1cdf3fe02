"""The bearer token of the SDK's calls."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

import flywheel as fw
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.trainer.v1 import trainer_pb2_grpc


class Tokens(trainer_pb2_grpc.TrainerServiceServicer):
    """Remembers the `authorization` of each call."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.address = ""

    async def ListRuns(self, request: pb.ListRunsRequest, context: grpc.aio.ServicerContext) -> object:
        self.seen.append(str(dict(context.invocation_metadata() or ()).get("authorization", "")))
        return pb.ListRunsResponse()


@pytest.fixture
async def tokens() -> AsyncIterator[Tokens]:
    server, tokens = grpc.aio.server(), Tokens()
    trainer_pb2_grpc.add_TrainerServiceServicer_to_server(tokens, server)
    tokens.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield tokens
    await server.stop(None)


async def test_the_token_is_the_argument_or_that_of_the_environment(
    tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def call(**options: object) -> None:
        async with fw.Client(trainer=tokens.address, **options) as client:  # type: ignore[arg-type]
            await client.trainer.ListRuns(pb.ListRunsRequest())

    await call()
    await call(token="a")
    renewed = iter(("b", "c"))
    await call(token=lambda: next(renewed))
    monkeypatch.setenv("FLYWHEEL_TOKEN", "d")
    await call()
    await call(token="e\n")
    assert tokens.seen == ["", "Bearer a", "Bearer b", "Bearer d", "Bearer e"]
