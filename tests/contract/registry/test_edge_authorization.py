"""Edge tests for authorization in JWT mode: who may promote, override, reject and roll out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.field_mask_pb2 import FieldMask

from flywheel_common.grpc.channel import channel, from_rpc_error
from flywheel_protos.registry.v1 import model_pb2, registry_pb2_grpc, search_pb2
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_registry.fakes.store import MemoryStore
from tests.support.builders.registry import ModelClient
from tests.support.servers.registry import refused, running_memory_registry

KEY = ec.generate_private_key(ec.SECP256R1())
ROLES = ("viewer", "editor", "operator", "editor+promoter", "service", "admin")
UNNAMED = "service+editor"
"""A service that the settings do not name as a producer of evidence."""


def token(role: str) -> str:
    claims = {
        "sub": f"the {role}",
        "iss": "https://issuer",
        "aud": "flywheel",
        "exp": time.time() + 60,
        "roles": role.split("+"),
    }
    return jwt.encode(claims, KEY, algorithm="ES256")


@pytest.fixture
async def clients(tmp_path: Path) -> AsyncIterator[dict[str, ModelClient]]:
    """One client for each role."""
    key_file = tmp_path / "key.pem"
    key_file.write_bytes(
        KEY.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    async with AsyncExitStack() as stack:
        stub = await stack.enter_async_context(
            running_memory_registry(
                MemoryStore(),
                auth_mode="jwt",
                jwt_issuer="https://issuer",
                jwt_audience="flywheel",
                jwt_key_file=key_file,
                evidence_producers=("the service",),
            )
        )
        made = {}
        for role in (*ROLES, UNNAMED):
            opened = await stack.enter_async_context(
                channel(stub.address, client_name="tests", token=token(role), health_check=False)
            )
            made[role] = ModelClient(registry_pb2_grpc.RegistryServiceStub(opened))
        yield made


async def reason_for(call: grpc.aio.Call) -> str:
    """Return the reason of the call's error, empty when it succeeds."""
    try:
        await call
    except grpc.RpcError as error:
        mapped = from_rpc_error(error)
        denied = mapped.code is grpc.StatusCode.PERMISSION_DENIED
        assert denied == (mapped.reason in ("ROLE_REQUIRED", "EVIDENCE_PRODUCER_REQUIRED"))
        return mapped.reason
    return ""


async def test_editors_promote_and_only_operators_override(clients: dict[str, ModelClient]) -> None:
    await clients["editor"].create()
    version = (await clients["editor"].version()).name

    async def promotion(role: str, override: bool) -> str:
        stub = clients[role].stub
        request = pb.PromoteModelVersionRequest(name=version, override=override, reason="because")
        return await reason_for(stub.PromoteModelVersion(request))

    assert "ROLE_REQUIRED" == await promotion("viewer", override=False)
    assert "ROLE_REQUIRED" == await promotion("editor", override=True)
    assert "NONE" == await clients["viewer"].stage(version)
    assert "" == await promotion("editor", override=False)
    assert "STAGING" == await clients["viewer"].stage(version)
    assert "" == await promotion("operator", override=True)
    assert "CANDIDATE" == await clients["viewer"].stage(version)


async def test_only_promoters_promote_to_production(clients: dict[str, ModelClient]) -> None:
    await clients["editor"].create()
    version = (await clients["editor"].version()).name
    await clients["editor"].release(version)

    async def promotion(role: str, *, override: bool = True) -> str:
        return await reason_for(
            clients[role].stub.PromoteModelVersion(
                pb.PromoteModelVersionRequest(
                    name=version, to_stage=model_pb2.STAGE_PRODUCTION, override=override, reason="by hand"
                )
            )
        )

    assert "ROLE_REQUIRED" == await promotion("editor")
    assert "ILLEGAL_TRANSITION" == await promotion("editor+promoter", override=False)
    assert "NONE" == await clients["viewer"].stage(version)
    assert "" == await promotion("editor+promoter")
    assert "PRODUCTION" == await clients["viewer"].stage(version)


async def test_only_promoters_change_policies(clients: dict[str, ModelClient]) -> None:
    model = await clients["editor"].create()
    policy = model_pb2.GatePolicy(min_evaluation_rows=10)

    async def update(role: str, *mask: str, **fields: object) -> str:
        changed = model_pb2.Model(name=model.name, **fields)
        request = pb.UpdateModelRequest(model=changed, update_mask=FieldMask(paths=mask))
        return await reason_for(clients[role].stub.UpdateModel(request))

    assert "ROLE_REQUIRED" == await update("editor", gate_policy=policy)
    assert "ROLE_REQUIRED" == await update("editor", "gate_policy")
    assert "ROLE_REQUIRED" == await update("editor", "description", "rollout_policy")
    assert "" == await update("editor", description="rides")
    assert "" == await update("operator", gate_policy=policy)
    loosened = model_pb2.GatePolicy(min_evaluation_rows=5)
    assert "" == await update("editor+promoter", gate_policy=loosened)
    updates = [e.reason for e in await clients["viewer"].audit() if e.action == "UPDATE"]
    assert "description" == updates[0]
    assert "gate_policy: min_evaluation_rows: 10 → 5" == updates[-1]


async def test_only_named_services_record_evaluations(clients: dict[str, ModelClient]) -> None:
    await clients["editor"].create()
    version = (await clients["editor"].version()).name
    request = pb.RecordEvaluationRequest(name=version, values={"auc": 0.5}, findings=["passed: measured"])
    for role in ROLES:
        expected = "" if role == "service" else "ROLE_REQUIRED"
        assert expected == await reason_for(clients[role].stub.RecordEvaluation(request)), role
    assert "EVIDENCE_PRODUCER_REQUIRED" == await reason_for(clients[UNNAMED].stub.RecordEvaluation(request))
    recorded = (await clients["service"].stub.RecordEvaluation(request)).evidence
    assert ("EVALUATION", "the service", {"auc": 0.5}) == (
        recorded.kind,
        recorded.producer,
        dict(recorded.values),
    )


async def test_only_named_services_send_evidence(clients: dict[str, ModelClient]) -> None:
    await clients["editor"].create()
    version = (await clients["editor"].version()).name
    request = pb.PromoteModelVersionRequest(name=version, evidence=model_pb2.Evidence(values={"f1": 0.5}))
    for role in ("editor", "operator", "editor+promoter", "admin"):
        assert "ROLE_REQUIRED" == await reason_for(clients[role].stub.PromoteModelVersion(request)), role
    with refused("PERMISSION_DENIED", "EVIDENCE_PRODUCER_REQUIRED") as refusal:
        await clients[UNNAMED].stub.PromoteModelVersion(request)
    assert refusal.message == (
        "the service+editor may not send evidence: the registry accepts it from the service."
    )
    assert "NONE" == await clients["viewer"].stage(version)
    promoted = await clients["service"].stub.PromoteModelVersion(request)
    assert "the service" == promoted.evidence.producer


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("RejectModelVersion", pb.RejectModelVersionRequest()),
        ("StartRollout", pb.StartRolloutRequest()),
        ("PauseRollout", pb.PauseRolloutRequest()),
        ("ResumeRollout", pb.ResumeRolloutRequest()),
        ("AbortRollout", pb.AbortRolloutRequest()),
        ("SkipRolloutStep", pb.SkipRolloutStepRequest()),
        ("ConcludeRollout", pb.ConcludeRolloutRequest(verdict=pb.EXPERIMENT_VERDICT_SHIP)),
        ("RollbackModel", pb.RollbackModelRequest()),
    ],
)
async def test_only_operators_reject_roll_out_and_roll_back(
    clients: dict[str, ModelClient], method: str, request_: object
) -> None:
    reasons = {role: await reason_for(getattr(clients[role].stub, method)(request_)) for role in ROLES}
    assert reasons == {
        "viewer": "ROLE_REQUIRED",
        "editor": "ROLE_REQUIRED",
        # The role suffices, so the empty request is rejected for its name.
        "operator": "INVALID_NAME",
        "editor+promoter": "INVALID_NAME",
        "service": "INVALID_NAME",
        "admin": "INVALID_NAME",
    }


async def test_only_promoters_change_protected_aliases(clients: dict[str, ModelClient]) -> None:
    await clients["editor"].create()
    versions = [(await clients["editor"].version()).name for _ in range(2)]

    async def alias(role: str, number: int, **fields: object) -> str:
        request = search_pb2.SetModelAliasRequest(
            parent=clients[role].model, alias_id="best", model_version=versions[number], **fields
        )
        return await reason_for(clients[role].stub.SetModelAlias(request))

    async def delete(role: str) -> str:
        request = search_pb2.DeleteModelAliasRequest(name=f"{clients[role].model}/aliases/best")
        return await reason_for(clients[role].stub.DeleteModelAlias(request))

    assert "" == await alias("editor", 0)
    assert "ROLE_REQUIRED" == await alias("editor", 0, protected=True)
    assert "" == await alias("editor+promoter", 0, protected=True)
    assert "ROLE_REQUIRED" == await alias("editor", 1)
    assert "ROLE_REQUIRED" == await alias("editor", 1, protected=False)
    assert "ROLE_REQUIRED" == await delete("editor")
    assert "" == await alias("operator", 1)
    assert "" == await delete("editor+promoter")
