"""The method of TrainerService that signs requests to the object store."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration

from flywheel_protos.trainer.v1 import object_access_pb2 as pb
from flywheel_trainer.api.attempt_tokens import current_attempt
from flywheel_trainer.jobs.errors import InvalidObjectRequest
from flywheel_trainer.jobs.object_access import ObjectAccess, ObjectMethod, ObjectRequest

_PREFIX = "OBJECT_METHOD_"


class ObjectMethods:
    """Mixin of the servicer."""

    _object_access: ObjectAccess

    async def SignObjectRequests(
        self, request: pb.SignObjectRequestsRequest, context: Any
    ) -> pb.SignObjectRequestsResponse:
        requests = [_from_proto(one) for one in request.requests]
        signed = await self._object_access.sign(requests, current_attempt())
        return pb.SignObjectRequestsResponse(
            requests=[
                pb.SignedObjectRequest(http_method=one.http_method, url=one.url, headers=one.headers)
                for one in signed
            ],
            lifetime=Duration(seconds=self._object_access.lifetime_seconds),
        )


def _from_proto(message: pb.ObjectRequest) -> ObjectRequest:
    try:
        method = ObjectMethod(pb.ObjectMethod.Name(message.method).removeprefix(_PREFIX))
    except ValueError:
        raise InvalidObjectRequest(f"method is {message.method}, which is no method.") from None
    return ObjectRequest(
        method,
        message.uri,
        message.source_uri,
        message.sha256,
        message.upload_id,
        message.part_number,
        message.continuation_token,
    )
