"""Sends random and malformed requests to every method of a service; each must be refused with a documented
error.

seen = await refusals(channel, feature_pb2.DESCRIPTOR.services_by_name["FeatureService"], contents)
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from flywheel_common.grpc.channel import from_rpc_error

DOCUMENTED = frozenset(
    {
        "OK",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "PERMISSION_DENIED",
        "ALREADY_EXISTS",
        "FAILED_PRECONDITION",
        "ABORTED",
        "RESOURCE_EXHAUSTED",
        "UNAVAILABLE",
    }
)
"""The codes with which a method may answer a random request; DEADLINE_EXCEEDED is not one of them.
PERMISSION_DENIED is, for methods that only an attempt of a job may call."""
_REASON = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
_MALFORMED = b"\xff\xff\xff\xff"
_DEPTH = 4


@dataclass(frozen=True)
class Outcome:
    """The outcome of a call: its code (OK or an error), reason and message."""

    method: str
    request: bytes
    code: str
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.method} {self.code} {self.reason}: {self.message} <- {self.request[:200]!r}"


async def refusals(
    channel: grpc.aio.Channel,
    service: ServiceDescriptor,
    contents: Callable[[], Awaitable[object]],
    *,
    rounds: int = 30,
    seed: int = 0,
    timeout: float = 10.0,
) -> Counter[str]:
    """Calls every method with malformed bytes, the empty request and `rounds` random requests; counts the
    codes.

    `contents` returns the contents of the stores. Raises AssertionError with all outcomes that the API does
    not document, and when refused calls changed the contents.
    """
    wrong: list[str] = []
    seen: Counter[str] = Counter()
    before = await contents()
    for method in service.methods:
        requests = [_MALFORMED, b"", *random_requests(method, rounds, seed)]
        answers = [await outcome_of(channel, service, method, request, timeout) for request in requests]
        wrong += undocumented(answers)
        seen.update(a.code for a in answers)
        after = await contents()
        if before != after and all(a.code != "OK" for a in answers):
            wrong.append(f"{method.name} refused everything and changed {before} to {after}")
        before = after
    assert not wrong, "\n".join(wrong)
    return seen


def undocumented(answers: Sequence[Outcome]) -> list[str]:
    """The outcomes without a documented code, a reason and a message. Malformed bytes must be
    MALFORMED_REQUEST."""
    return [
        str(a)
        for a in answers
        if a.code not in DOCUMENTED
        or (a.request == _MALFORMED and a.reason != "MALFORMED_REQUEST")
        or (a.code != "OK" and not (_REASON.fullmatch(a.reason) and len(a.message) > 15))
    ]


def damaged(valid: bytes, chance: random.Random) -> bytes:
    """A serialized message after one to four random changes of its bytes."""
    body = bytearray(valid)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(body) + 1)
        match chance.randrange(5):
            case 0 if body:
                body[place % len(body)] ^= 1 << chance.randrange(8)
            case 1:
                body[place:place] = chance.randbytes(chance.randint(1, 6))
            case 2:
                del body[place : place + chance.randint(1, 6)]
            case 3:
                body[place:place] = body[: chance.randint(1, 40)]
            case _:
                # A varint with the largest length or number.
                body[place : place + 1] = b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"
    return bytes(body)


def random_requests(method: MethodDescriptor, rounds: int, seed: int) -> Iterator[bytes]:
    """Serialized requests of a method whose fields have random values."""
    chance = random.Random(f"{method.full_name} {seed}")
    kind = message_factory.GetMessageClass(method.input_type)
    for _ in range(rounds):
        request = kind()
        _fill(request, chance, _DEPTH)
        yield request.SerializeToString()


def _fill(message: Message, chance: random.Random, depth: int) -> None:
    for field in message.DESCRIPTOR.fields:
        if chance.random() < 0.35:
            continue
        if field.message_type is not None:
            if depth:
                _fill_message(message, field, chance, depth)
        elif field.is_repeated:
            getattr(message, field.name).extend(_value(field, chance) for _ in range(chance.randrange(3)))
        else:
            setattr(message, field.name, _value(field, chance))


def _fill_message(message: Message, field: Any, chance: random.Random, depth: int) -> None:
    target = getattr(message, field.name)
    if field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[n] for n in ("key", "value"))
        if value.message_type is None:
            target[_value(key, chance)] = _value(value, chance)
        else:
            _fill(target[_value(key, chance)], chance, depth - 1)
    elif field.is_repeated:
        for _ in range(chance.randrange(3)):
            _fill(target.add(), chance, depth - 1)
    else:
        target.SetInParent()
        _fill(target, chance, depth - 1)


_COLLECTIONS = (
    "entities",
    "sources",
    "views",
    "featureSets",
    "trainingSets",
    "jobs",
    "models",
    "experiments",
    "runs",
    "pipelineRuns",
    "retrainingPolicies",
    "alerts",
    "driftReports",
)
_TEXTS = ("", "nonsense", "projects/p", "projects/../x", "ü\0\u2028", "x" * 3000, "s3://b/k/", "1")


def _value(field: Any, chance: random.Random) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return chance.choice([b"", b"\0", b"\xff" * 7, chance.randbytes(24)])
        name = f"projects/p/{chance.choice(_COLLECTIONS)}/ghost"
        return chance.choice([*_TEXTS, name, name, f"{name}/versions/9"])
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return chance.random() < 0.5
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return chance.choice([0.0, -1.0, 0.5, 1e30, float("nan"), float("inf"), float("-inf")])
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return chance.choice([0, 1, 2, 77])
    top = 2 ** (31 if kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 63) - 1
    signed = kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
    return chance.choice([0, 1, 3, 1000, top, -1 if signed else 7, -top if signed else 8])


async def outcome_of(
    channel: grpc.aio.Channel,
    service: ServiceDescriptor,
    method: MethodDescriptor,
    request: bytes,
    timeout: float = 10.0,
) -> Outcome:
    """The outcome of one call."""
    path = f"/{service.full_name}/{method.name}"

    def answer(code: str, reason: str = "", message: str = "") -> Outcome:
        return Outcome(method.name, request, code, reason, message)

    sent: Any = iter([request]) if method.client_streaming else request
    try:
        if method.server_streaming:
            make = channel.stream_stream if method.client_streaming else channel.unary_stream
            stream = make(path)(sent, timeout=timeout)
            try:
                # A stream that begins, or waits for events, has accepted the request.
                async with asyncio.timeout(0.3):
                    await stream.read()
            except TimeoutError:
                pass
            finally:
                stream.cancel()
        else:
            call = channel.stream_unary if method.client_streaming else channel.unary_unary
            await call(path)(sent, timeout=timeout)
    except grpc.aio.AioRpcError as error:
        mapped = from_rpc_error(error)
        return answer(error.code().name, mapped.reason, mapped.message)
    return answer("OK")
