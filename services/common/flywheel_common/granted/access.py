"""What an attempt may do on the object store: a rule on its requests, and the signing of those that pass.

An attempt is one execution of a job on a cluster where code of users runs, so it has no key of the object
store. It asks for signed requests, which reach one object each, expire, and are given to the active attempt
only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Protocol, Self

from flywheel_common.granted.errors import ForeignObject, InvalidObjectRequest
from flywheel_common.storage.errors import InvalidObjectKey
from flywheel_common.storage.objects import check_key, digest_key

MAX_REQUESTS = 100
MAX_PARTS = 10_000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SCHEME = "s3://"


class ObjectMethod(StrEnum):
    """What a request does with an object; the values are those of the API."""

    GET = "GET"
    HEAD = "HEAD"
    LIST = "LIST"
    PUT = "PUT"
    COPY = "COPY"
    DELETE = "DELETE"
    CREATE_UPLOAD = "CREATE_UPLOAD"
    UPLOAD_PART = "UPLOAD_PART"
    COMPLETE_UPLOAD = "COMPLETE_UPLOAD"
    ABORT_UPLOAD = "ABORT_UPLOAD"


READS = frozenset({ObjectMethod.GET, ObjectMethod.HEAD, ObjectMethod.LIST})
OF_UPLOADS = frozenset({ObjectMethod.UPLOAD_PART, ObjectMethod.COMPLETE_UPLOAD, ObjectMethod.ABORT_UPLOAD})


@dataclass(frozen=True)
class ObjectRequest:
    """A request to the object store, as an attempt wants to send it; addresses are `s3://bucket/key`."""

    method: ObjectMethod
    uri: str
    source_uri: str = ""
    sha256: str = ""
    """Digest (hex) that the body of a PUT must have; empty: any body."""
    upload_id: str = ""
    part_number: int = 0
    continuation_token: str = ""


@dataclass(frozen=True)
class SignedRequest:
    """A request that the object store accepts until it expires; the headers must be sent."""

    http_method: str
    url: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Access:
    """Addresses that an attempt may use, each with everything below it."""

    reads: tuple[str, ...]
    """Its inputs."""
    writes: tuple[str, ...]
    """The job's own files, which it may read, write and delete."""
    artifacts: str = ""
    """Prefix whose keys are digests: bytes may be written under their own digest, and nothing else. Empty:
    none."""

    @cached_property
    def _own(self) -> frozenset[str]:
        return _addresses(self.writes)

    @cached_property
    def _readable(self) -> frozenset[str]:
        return self._own | _addresses(self.reads)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `asdict`."""
        return cls(tuple(fields["reads"]), tuple(fields["writes"]), fields["artifacts"])

    def check(self, request: ObjectRequest) -> None:
        """Raises InvalidObjectRequest and ForeignObject."""
        address = _checked(request.uri, is_prefix=request.method is ObjectMethod.LIST)
        if request.method in OF_UPLOADS and not request.upload_id:
            raise InvalidObjectRequest(f"{request.method} has no upload_id.")
        if request.method is ObjectMethod.UPLOAD_PART and not 1 <= request.part_number <= MAX_PARTS:
            raise InvalidObjectRequest(f"part_number is {request.part_number}, not 1 to {MAX_PARTS}.")
        if request.sha256 and _SHA256.fullmatch(request.sha256) is None:
            raise InvalidObjectRequest("sha256 must be 64 lower-case hexadecimal digits.")
        own = _is_below(address, self._own)
        if request.method in READS:
            allowed = own or _is_below(address, self._readable)
        elif request.method is ObjectMethod.COPY:
            source = _checked(request.source_uri, is_prefix=False)
            allowed = own and _is_below(source, self._readable)
        else:
            allowed = own or self._is_artifact(request)
        if not allowed:
            raise ForeignObject(f"The attempt may not {request.method} {request.uri[:1000]!r}.")

    def _is_artifact(self, request: ObjectRequest) -> bool:
        named = bool(request.sha256) and request.uri == digest_key(request.sha256, self.artifacts)
        return request.method is ObjectMethod.PUT and named


class AttemptAccess(Protocol):
    """The access that a service recorded for its attempts.

    `access_of` takes the name of an attempt on the cluster. Raises AttemptEnded unless that attempt is active
    and has been started.
    """

    async def access_of(self, attempt: str) -> Access: ...


class Signer(Protocol):
    """Signs requests to the object store with the key of this service, without asking the store.

    A signed request permits exactly what it names, for `lifetime_seconds`. The body of a PUT with a digest
    must have it; the store refuses another one.
    """

    async def sign(self, request: ObjectRequest, lifetime_seconds: int) -> SignedRequest: ...


class ObjectAccess:
    """Signs the requests of attempts."""

    def __init__(self, attempts: AttemptAccess, signer: Signer, lifetime_seconds: int) -> None:
        self._attempts, self._signer = attempts, signer
        self.lifetime_seconds = lifetime_seconds

    async def sign(self, requests: Sequence[ObjectRequest], attempt: str) -> list[SignedRequest]:
        """The signed requests in the same order, or none of them.

        `attempt` is the name of the attempt that calls; empty for other callers. Raises ForeignObject,
        InvalidObjectRequest, and what `access_of` raises.
        """
        if not attempt:
            raise ForeignObject("Only an attempt of a job gets requests to the object store.")
        if not 1 <= len(requests) <= MAX_REQUESTS:
            raise InvalidObjectRequest(f"There are {len(requests)} requests, not 1 to {MAX_REQUESTS}.")
        access = await self._attempts.access_of(attempt)
        for request in requests:
            access.check(request)
        return [await self._signer.sign(request, self.lifetime_seconds) for request in requests]


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`; both are empty for anything else."""
    if not uri.startswith(_SCHEME):
        return "", ""
    bucket, _, key = uri.removeprefix(_SCHEME).partition("/")
    return bucket, key


def _checked(uri: str, *, is_prefix: bool) -> str:
    """`bucket/key`. Raises InvalidObjectRequest for keys that a store might read as other ones."""
    bucket, key = split_uri(uri)
    key = key.removesuffix("/") if is_prefix else key
    try:
        if not bucket:
            raise InvalidObjectKey("no address")
        check_key(key)
    except InvalidObjectKey:
        raise InvalidObjectRequest(f"{uri[:100]!r} is not of the form s3://bucket/key.") from None
    return f"{bucket}/{key}"


def _addresses(uris: Sequence[str]) -> frozenset[str]:
    """`bucket/key` of each address; an address of a whole bucket permits nothing."""
    parts = ((bucket, key.rstrip("/")) for bucket, key in map(split_uri, uris))
    return frozenset(f"{bucket}/{key}" for bucket, key in parts if key)


def _is_below(address: str, allowed: frozenset[str]) -> bool:
    """Whether the address is one of those, or below one of them."""
    while address:
        if address in allowed:
            return True
        address = address.rpartition("/")[0]
    return False
