"""Encodes a RepositoryModelLoad request around a model file that this process does not read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from flywheel_inference.models.triton_config import MODEL_PATH

_BYTES = 2
"""Wire type of nested messages, texts and bytes, which follow their length."""


def request_head(name: str, config: str, files: Mapping[str, bytes], size: int) -> bytes:
    """All of the request before the content of its model file, which has `size` bytes and is the end of the
    request. Messages may have their fields in any order."""
    request = pb.RepositoryModelLoadRequest(model_name=name)
    request.parameters["config"].string_param = config
    for path, content in files.items():
        request.parameters[path].bytes_param = content
    content_head = _field(pb.ModelRepositoryParameter.DESCRIPTOR, "bytes_param", size)
    entry_type = pb.RepositoryModelLoadRequest.ParametersEntry.DESCRIPTOR
    key = _field(entry_type, "key", len(MODEL_PATH)) + MODEL_PATH.encode()
    value_head = _field(entry_type, "value", len(content_head) + size)
    entry = key + value_head + content_head
    entry_head = _field(pb.RepositoryModelLoadRequest.DESCRIPTOR, "parameters", len(entry) + size)
    return bytes(request.SerializeToString()) + entry_head + entry


def _field(message: Any, name: str, length: int) -> bytes:
    """Tag and length of a field."""
    return _varint(message.fields_by_name[name].number << 3 | _BYTES) + _varint(length)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
