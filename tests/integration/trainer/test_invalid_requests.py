"""Every method rejects invalid requests with a documented status code and changes nothing."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from flywheel_protos.trainer.v1 import trainer_pb2
from tests.support.mutated_requests import refusals
from tests.support.row_counts import row_counts


@pytest.mark.timeout(180)
async def test_every_method_rejects_invalid_requests_as_documented(
    start_trainer: Any, trainer_settings: dict[str, str], database: str
) -> None:
    trainer = await start_trainer(trainer_settings)
    async with grpc.aio.insecure_channel(trainer.address) as channel:
        service = trainer_pb2.DESCRIPTOR.services_by_name["TrainerService"]
        codes = await refusals(channel, service, lambda: row_counts(database))
    assert codes["INVALID_ARGUMENT"] > len(service.methods)
    assert codes["NOT_FOUND"]
