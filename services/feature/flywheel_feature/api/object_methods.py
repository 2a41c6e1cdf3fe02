"""The method of FeatureService that signs requests to the object store."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration

from flywheel_common.granted.access import ObjectAccess
from flywheel_common.granted.messages import request_from_proto, signed_to_proto
from flywheel_common.grpc.attempt_tokens import current_attempt
from flywheel_protos.feature.v1 import object_access_pb2 as pb


class ObjectMethods:
    """Mixin of the servicer."""

    _object_access: ObjectAccess

    async def SignObjectRequests(
        self, request: pb.SignObjectRequestsRequest, context: Any
    ) -> pb.SignObjectRequestsResponse:
        requests = [request_from_proto(one) for one in request.requests]
        signed = await self._object_access.sign(requests, current_attempt())
        lifetime = Duration(seconds=self._object_access.lifetime_seconds)
        return pb.SignObjectRequestsResponse(requests=map(signed_to_proto, signed), lifetime=lifetime)
