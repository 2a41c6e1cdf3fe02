"""The method of a service that signs requests to the object store."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration

from flywheel_common.granted.access import ObjectAccess
from flywheel_common.granted.messages import request_from_proto, signed_to_proto
from flywheel_common.grpc.attempt_tokens import current_attempt


class ObjectMethods:
    """Mixin of a servicer."""

    _object_access: ObjectAccess
    _sign_response: type[Any]
    """The service's own SignObjectRequestsResponse."""

    async def SignObjectRequests(self, request: Any, context: Any) -> Any:
        requests = [request_from_proto(one) for one in request.requests]
        signed = await self._object_access.sign(requests, current_attempt())
        lifetime = Duration(seconds=self._object_access.lifetime_seconds)
        return self._sign_response(requests=map(signed_to_proto, signed), lifetime=lifetime)
