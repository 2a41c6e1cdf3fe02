"""Sends requests to the object store that a service has signed for this attempt.

A signed request reaches one object and expires, so it is asked for again when it is old. A service or a store
that does not answer is asked again for RETRY_SECONDS; then, and for a refusal, an OSError is raised.
"""

from __future__ import annotations

import errno
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import urllib3
from urllib3.exceptions import HTTPError

from flywheel_protos.types.v1 import object_access_pb2 as pb

RETRY_SECONDS = 300.0
CALL_SECONDS = 10.0
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
REMEMBERED = 10_000
"""Signed requests that are kept to be sent again, about 1 KB each: one task of a join reads many files."""
USED_SHARE = 0.5
"""Share of its lifetime after which a signed request is not used any more."""
PASSING = frozenset({429, 500, 502, 503, 504})
"""Answers of a store that a repetition may not get."""
AWAY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
    }
)


@dataclass(frozen=True)
class _Remembered:
    request: pb.SignedObjectRequest
    until: float


@dataclass(frozen=True)
class Answer:
    """The answer of the object store."""

    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class SigningService:
    """A service with the method SignObjectRequests."""

    stub: Callable[[grpc.Channel], Any]
    """The constructor of its stub."""
    request: type[Any]
    """The class of the request message."""


class SignedRequests:
    """The requests of one process; all methods may be called from several threads."""

    def __init__(
        self, address: str, token: str, service: SigningService, *, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        """`address` of the service: host:port."""
        self._channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self._stub = service.stub(self._channel)
        self._request = service.request
        self._metadata = [("authorization", f"Bearer {token}")]
        self.retry_seconds = retry_seconds
        self._lock = threading.Lock()
        self._remembered: OrderedDict[bytes, _Remembered] = OrderedDict()
        self._http = urllib3.PoolManager(
            maxsize=16, retries=False, timeout=urllib3.Timeout(connect=10.0, read=60.0)
        )

    def close(self) -> None:
        self._channel.close()
        self._http.clear()

    def send(
        self, request: pb.ObjectRequest, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send the request until the store answers it.

        Raises FileNotFoundError, PermissionError if the service or the store refuses, else OSError.
        """
        give_up = time.monotonic() + self.retry_seconds
        pause = SHORTEST_PAUSE
        is_new = False
        while True:
            signed = self._signed(request, give_up, renew=is_new)
            problem: Exception
            try:
                # A POST without a body must say that it has none.
                answer = self._http.request(
                    signed.http_method,
                    signed.url,
                    body=b"" if body is None and signed.http_method in ("POST", "PUT") else body,
                    headers={**signed.headers, **(headers or {})},
                    decode_content=False,
                )
            except HTTPError as error:
                problem = OSError(errno.EIO, f"The object store does not answer: {error}")
            else:
                if answer.status < 300:
                    return Answer(answer.headers, answer.data)
                problem = _problem(request, answer)
                if answer.status == 403 and not is_new:
                    is_new = True  # it may have expired on the way
                    continue
                if answer.status not in PASSING:
                    raise problem
            if time.monotonic() + pause > give_up:
                raise problem
            pause = _wait(pause)

    def _signed(self, request: pb.ObjectRequest, give_up: float, *, renew: bool) -> pb.SignedObjectRequest:
        key = request.SerializeToString(deterministic=True)
        with self._lock:
            known = self._remembered.get(key)
            if known is not None and not renew and time.monotonic() < known.until:
                self._remembered.move_to_end(key)
                return known.request
        asked = time.monotonic()
        answer = self._ask(request, give_up)
        until = asked + answer.lifetime.seconds * USED_SHARE
        with self._lock:
            self._remembered[key] = _Remembered(answer.requests[0], until)
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        return answer.requests[0]

    def _ask(self, request: pb.ObjectRequest, give_up: float) -> Any:
        pause = SHORTEST_PAUSE
        while True:
            try:
                return self._stub.SignObjectRequests(
                    self._request(requests=[request]),
                    timeout=CALL_SECONDS,
                    metadata=self._metadata,
                )
            except grpc.RpcError as error:
                if error.code() not in AWAY:
                    raise PermissionError(f"{error.code().name}: {error.details()}") from None
                if time.monotonic() + pause > give_up:
                    raise OSError(
                        errno.EIO, f"The service that signs requests does not answer: {error.details()}"
                    ) from None
            pause = _wait(pause)


def _problem(request: pb.ObjectRequest, answer: Any) -> OSError:
    if answer.status == 404:
        return FileNotFoundError(f"There is no object {request.uri}.")
    text = f"The object store answered {answer.status} for {request.uri}: {answer.data[:300]!r}"
    if answer.status == 403:
        return PermissionError(text)
    # A range that the object does not have, such as any of an empty object.
    return OSError(errno.ERANGE if answer.status == 416 else errno.EIO, text)


def _wait(pause: float) -> float:
    """Wait, and return the next pause."""
    time.sleep(pause * random.uniform(0.5, 1.0))
    return min(2 * pause, LONGEST_PAUSE)
