"""`Signer` for S3: query-string signatures (presigned URLs), which every S3 store knows."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from flywheel_common.config import S3Settings
from flywheel_common.granted.access import ObjectMethod, ObjectRequest, SignedRequest, split_uri
from flywheel_common.storage.s3 import s3_client

_OPERATIONS = {
    ObjectMethod.GET: ("GET", "get_object"),
    ObjectMethod.HEAD: ("HEAD", "head_object"),
    ObjectMethod.LIST: ("GET", "list_objects_v2"),
    ObjectMethod.PUT: ("PUT", "put_object"),
    ObjectMethod.COPY: ("PUT", "copy_object"),
    ObjectMethod.DELETE: ("DELETE", "delete_object"),
    ObjectMethod.CREATE_UPLOAD: ("POST", "create_multipart_upload"),
    ObjectMethod.UPLOAD_PART: ("PUT", "upload_part"),
    ObjectMethod.COMPLETE_UPLOAD: ("POST", "complete_multipart_upload"),
    ObjectMethod.ABORT_UPLOAD: ("DELETE", "abort_multipart_upload"),
}


@asynccontextmanager
async def s3_signer(settings: S3Settings, endpoint: str) -> AsyncIterator[S3Signer]:
    """A signer for the store at `endpoint`, the address under which jobs reach it; closed at the end."""
    async with s3_client(settings.model_copy(update={"s3_endpoint": endpoint})) as client:
        yield S3Signer(client)


class S3Signer:
    """`Signer` with the key of an aiobotocore client."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def sign(self, request: ObjectRequest, lifetime_seconds: int) -> SignedRequest:
        http_method, operation = _OPERATIONS[request.method]
        params, headers = _arguments(request)
        url = await self._client.generate_presigned_url(
            operation, Params=params, ExpiresIn=lifetime_seconds, HttpMethod=http_method
        )
        return SignedRequest(http_method, url, headers)


def _arguments(request: ObjectRequest) -> tuple[dict[str, Any], Mapping[str, str]]:
    """The parameters of the operation, and the headers into which it puts some of them."""
    bucket, key = split_uri(request.uri)
    if request.method is ObjectMethod.LIST:
        listing = {"Bucket": bucket, "Prefix": key, "MaxKeys": 1000, "EncodingType": "url"}
        if request.continuation_token:
            listing["ContinuationToken"] = request.continuation_token
        return listing, {}
    params: dict[str, Any] = {"Bucket": bucket, "Key": key}
    if request.upload_id:
        params["UploadId"] = request.upload_id
    if request.method is ObjectMethod.UPLOAD_PART:
        params["PartNumber"] = request.part_number
    if request.method is ObjectMethod.COPY:
        source = "/".join(split_uri(request.source_uri))
        return params | {"CopySource": source}, {"x-amz-copy-source": quote(source, safe="/~")}
    if request.sha256:
        digest = base64.b64encode(bytes.fromhex(request.sha256)).decode()
        return params | {"ChecksumSHA256": digest}, {"x-amz-checksum-sha256": digest}
    return params, {}
