"""The part of the feature service that joins on a cluster call, as a server in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from flywheel_common.config import S3Settings, ServiceSettings
from flywheel_common.granted.access import ObjectAccess
from flywheel_common.granted.signer import s3_signer
from flywheel_common.granted.tokens import AttemptTokens
from flywheel_common.grpc.attempt_tokens import WithAttemptTokens
from flywheel_common.grpc.object_methods import ObjectMethods
from flywheel_common.grpc.server import Server
from flywheel_feature.fakes.join_access import MemoryJoinAccess
from flywheel_feature.offline.ports import JoinAccess
from flywheel_feature.permissions import PERMISSIONS, SERVICE
from flywheel_local.s3 import S3
from flywheel_protos.feature.v1 import feature_pb2_grpc, object_access_pb2

LIFETIME_SECONDS = 900


@dataclass(frozen=True)
class JoinSigning:
    """A server that signs requests of joins, and what it goes by."""

    address: str
    access: JoinAccess
    tokens: AttemptTokens


class _Servicer(ObjectMethods, feature_pb2_grpc.FeatureServiceServicer):
    _sign_response = object_access_pb2.SignObjectRequestsResponse

    def __init__(self, access: ObjectAccess) -> None:
        self._object_access = access


@asynccontextmanager
async def join_signing(s3: S3, access: JoinAccess | None = None) -> AsyncIterator[JoinSigning]:
    """Serve until the end of the block; by default the access is in memory."""
    access = access or MemoryJoinAccess()
    tokens = AttemptTokens(b"k" * 32)
    settings = ServiceSettings(listen="127.0.0.1:0", metrics_listen="", drain_seconds=0, grace_seconds=1)
    store = S3Settings(
        s3_endpoint=s3.endpoint, s3_access_key=s3.access_key, s3_secret_key=s3.secret_key, s3_bucket="none"
    )
    async with s3_signer(store, s3.endpoint) as signer:
        server = Server(
            settings,
            servicers=[
                (
                    feature_pb2_grpc.add_FeatureServiceServicer_to_server,
                    _Servicer(ObjectAccess(access, signer, LIFETIME_SECONDS)),
                )
            ],
            full_service_names=[SERVICE],
            permissions=PERMISSIONS,
            registry=CollectorRegistry(),
            authenticate=lambda others: WithAttemptTokens(others, tokens),
        )
        supervised = asyncio.create_task(server.run_until_signal())
        while not server.port and not supervised.done():
            await asyncio.sleep(0.01)
        try:
            yield JoinSigning(f"127.0.0.1:{server.port}", access, tokens)
        finally:
            server.request_stop()
            await supervised
