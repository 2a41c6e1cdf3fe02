"""Authentication and authorization in jwt mode."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from flywheel_common import errors
from flywheel_common.config import ServiceSettings
from flywheel_common.grpc.auth import AUTHENTICATED, OPERATE, PUBLIC, READ, authenticator, missing_rows
from flywheel_common.grpc.channel import channel, from_rpc_error
from flywheel_protos.types.v1.value_pb2 import Value
from tests.support.echo import SERVICE, EchoStub
from tests.support.eventually import eventually

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())


def token(key: Any = KEY, algorithm: str = "ES256", **changes: Any) -> str:
    claims = {
        "sub": "ada",
        "iss": "https://issuer",
        "aud": "flywheel",
        "exp": time.time() + 60,
        "roles": ["viewer"],
        **changes,
    }
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, key, algorithm=algorithm)


@pytest.fixture
def jwt_settings(tmp_path: Path) -> dict[str, Any]:
    public = KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    path = tmp_path / "key.pem"
    path.write_bytes(public)
    return {
        "auth_mode": "jwt",
        "jwt_issuer": "https://issuer",
        "jwt_audience": "flywheel",
        "jwt_key_file": path,
    }


PERMISSIONS = {
    f"/{SERVICE}/Echo": READ,
    f"/{SERVICE}/Sum": OPERATE,
    f"/{SERVICE}/Count": PUBLIC,
    f"/{SERVICE}/Double": AUTHENTICATED,
}


@pytest.fixture
async def running(start: Any, jwt_settings: dict[str, Any]) -> Any:
    return await start(
        server_options={"permissions": PERMISSIONS}, channel_options={"retries": False}, **jwt_settings
    )


async def outcome(running: Any, credential: str, method: str = "Echo") -> str:
    """OK, or the reason of the error."""
    async with channel(running.address, client_name="t", token=credential, health_check=False) as opened:
        stub = EchoStub(opened)
        try:
            match method:
                case "Echo" | "Sum":
                    await (stub.Echo(Value()) if method == "Echo" else stub.Sum(iter([Value()])))
                case _:
                    request = iter([Value()]) if method == "Double" else Value(int64_value=1)
                    [_ async for _ in getattr(stub, method)(request)]
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error).reason
    return "OK"


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        (
            ["viewer"],
            {"Echo": "OK", "Sum": "ROLE_REQUIRED", "Count": "OK", "Double": "OK", "Write": "ROLE_REQUIRED"},
        ),
        (["operator"], {"Echo": "OK", "Sum": "OK", "Count": "OK", "Double": "OK", "Write": "ROLE_REQUIRED"}),
        (
            [],
            {
                "Echo": "ROLE_REQUIRED",
                "Sum": "ROLE_REQUIRED",
                "Count": "OK",
                "Double": "OK",
                "Write": "ROLE_REQUIRED",
            },
        ),
        (
            ["*"],
            {
                "Echo": "ROLE_REQUIRED",
                "Sum": "ROLE_REQUIRED",
                "Count": "OK",
                "Double": "OK",
                "Write": "ROLE_REQUIRED",
            },
        ),
        (
            None,
            {
                "Echo": "MISSING_TOKEN",
                "Sum": "MISSING_TOKEN",
                "Count": "OK",
                "Double": "MISSING_TOKEN",
                "Write": "MISSING_TOKEN",
            },
        ),
    ],
)
async def test_roles_are_checked_per_method_and_denied_by_default(
    running: Any, roles: list[str] | None, expected: dict[str, str]
) -> None:
    credential = "" if roles is None else token(roles=roles)
    assert {method: await outcome(running, credential, method) for method in expected} == expected


@pytest.mark.parametrize(
    ("credential", "reason"),
    [
        (lambda: token(exp=time.time() - 5), "EXPIRED_TOKEN"),
        (lambda: token(iss="https://other"), "INVALID_TOKEN"),
        (lambda: token(aud="other"), "INVALID_TOKEN"),
        (lambda: token(sub=None), "INVALID_TOKEN"),
        (lambda: token(exp=None), "INVALID_TOKEN"),
        (lambda: token(key=OTHER_KEY), "INVALID_TOKEN"),
        (lambda: token(key="x" * 40, algorithm="HS256"), "INVALID_TOKEN"),
        (lambda: token(key=None, algorithm="none"), "INVALID_TOKEN"),
        (lambda: "not a token", "INVALID_TOKEN"),
    ],
)
async def test_bad_tokens_are_refused_with_a_reason(running: Any, credential: Any, reason: str) -> None:
    assert await outcome(running, credential()) == reason


async def test_a_cached_token_is_refused_after_it_expires(running: Any) -> None:
    short = token(exp=time.time() + 2.0)
    assert await outcome(running, short) == "OK"

    async def expired() -> bool:
        return await outcome(running, short) == "EXPIRED_TOKEN"

    await eventually(expired, within=20)


async def test_credentials_are_checked_before_the_bytes_are_parsed(running: Any) -> None:
    raw = running.channel.unary_unary(f"/{SERVICE}/Echo")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw(b"\xff\xff\xff")
    assert from_rpc_error(caught.value).reason == "MISSING_TOKEN"


async def test_the_actor_is_the_token_subject_not_the_actor_header(running: Any) -> None:
    plain = running.channel._inner.unary_unary(f"/{SERVICE}/Echo", Value.SerializeToString, Value.FromString)
    answer = await plain(
        Value(string_value="who"),
        metadata=[("authorization", f"Bearer {token()}"), ("x-flywheel-actor", "root")],
    )
    assert answer.string_value == "ada/ada"


async def test_health_needs_no_token_and_reflection_does(running: Any) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    answer = await health_pb2_grpc.HealthStub(running.channel).Check(
        health_pb2.HealthCheckRequest(service=SERVICE)
    )
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    call = reflection_pb2_grpc.ServerReflectionStub(running.channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [_ async for _ in call]
    assert isinstance(from_rpc_error(caught.value), errors.Unauthenticated)


async def test_methods_without_a_permission_are_found(running: Any) -> None:
    assert missing_rows(running.server.methods, PERMISSIONS) == [f"/{SERVICE}/Write"]


def test_open_mode_refuses_addresses_other_than_loopback() -> None:
    with pytest.raises(ValueError, match="would accept every caller"):
        authenticator(ServiceSettings(listen="0.0.0.0:7100"))
    assert authenticator(ServiceSettings(listen="0.0.0.0:7100", auth_open_anywhere=True)).open
    for loopback in ("127.0.0.1:1", "[::1]:1", "localhost:1"):
        assert authenticator(ServiceSettings(listen=loopback)).open


def test_jwt_mode_lists_missing_settings() -> None:
    with pytest.raises(
        ValueError, match=r"jwt_issuer, jwt_audience, exactly one of jwt_key_file and jwt_jwks_url"
    ):
        authenticator(ServiceSettings(auth_mode="jwt"))
