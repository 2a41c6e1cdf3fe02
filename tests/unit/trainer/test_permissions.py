"""The authorization table and the servicer cover every RPC of TrainerService."""

from __future__ import annotations

from flywheel_protos.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from flywheel_trainer.api.servicer import TrainerServicer
from flywheel_trainer.permissions import PERMISSIONS, SERVICE

METHODS = [method.name for method in trainer_pb2.DESCRIPTOR.services_by_name["TrainerService"].methods]


def test_every_rpc_has_a_row_in_the_authorization_table() -> None:
    assert set(PERMISSIONS) == {f"/{SERVICE}/{method}" for method in METHODS}


def test_every_rpc_is_implemented_by_the_servicer() -> None:
    generated = trainer_pb2_grpc.TrainerServiceServicer
    unimplemented = [name for name in METHODS if getattr(TrainerServicer, name) is getattr(generated, name)]
    assert unimplemented == []
