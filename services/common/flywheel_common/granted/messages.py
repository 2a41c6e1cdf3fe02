"""Requests to the object store as messages."""

from __future__ import annotations

from flywheel_common.granted.access import ObjectMethod, ObjectRequest, SignedRequest
from flywheel_common.granted.errors import InvalidObjectRequest
from flywheel_protos.types.v1 import object_access_pb2 as pb

_PREFIX = "OBJECT_METHOD_"


def request_from_proto(message: pb.ObjectRequest) -> ObjectRequest:
    """Raises InvalidObjectRequest."""
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


def signed_to_proto(signed: SignedRequest) -> pb.SignedObjectRequest:
    return pb.SignedObjectRequest(http_method=signed.http_method, url=signed.url, headers=signed.headers)
