"""The object store of an attempt, which has no key: the trainer signs each of its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flywheel_common.granted.requests import SignedRequests, SigningService
from flywheel_protos.trainer.v1 import object_access_pb2, trainer_pb2_grpc

if TYPE_CHECKING:
    from pyarrow import fs

TRAINER_VARIABLE = "FLYWHEEL_JOB_TRAINER"
"""Environment variable with the host:port of the trainer that signs the requests of an attempt."""
TOKEN_VARIABLE = "FLYWHEEL_ATTEMPT_TOKEN"  # noqa: S105 - a name
"""Environment variable with the token of the attempt, which the trainer requires in each call."""
TRAINER = SigningService(trainer_pb2_grpc.TrainerServiceStub, object_access_pb2.SignObjectRequestsRequest)


def granted_store(trainer: str, token: str) -> fs.PyFileSystem:
    """The store of the attempt with this token; `trainer` is host:port."""
    # Imported here: the trainer needs the names above without pyarrow, which takes 50 MiB.
    from pyarrow import fs

    from flywheel_common.granted.filesystem import GrantedFiles

    return fs.PyFileSystem(GrantedFiles(SignedRequests(trainer, token, TRAINER)))
