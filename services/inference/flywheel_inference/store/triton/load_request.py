"""Encodes a RepositoryModelLoad request around a model file that this process does not read."""

from __future__ import annotations

from collections.abc import Mapping

from tritonclient.grpc import service_pb2 as pb

from flywheel_common.message_fields import prefix
from flywheel_inference.models.triton_config import MODEL_PATH

_REQUEST = pb.RepositoryModelLoadRequest.DESCRIPTOR.fields_by_name
_ENTRY = pb.RepositoryModelLoadRequest.ParametersEntry.DESCRIPTOR.fields_by_name
_PARAMETER = pb.ModelRepositoryParameter.DESCRIPTOR.fields_by_name


def request_head(name: str, config: str, files: Mapping[str, bytes], size: int) -> bytes:
    """All of the request before the content of its model file, which has `size` bytes and is the end of the
    request. Messages may have their fields in any order."""
    request = pb.RepositoryModelLoadRequest(model_name=name)
    request.parameters["config"].string_param = config
    for path, content in files.items():
        request.parameters[path].bytes_param = content
    content_head = prefix(_PARAMETER["bytes_param"], size)
    key = prefix(_ENTRY["key"], len(MODEL_PATH)) + MODEL_PATH.encode()
    value_head = prefix(_ENTRY["value"], len(content_head) + size)
    entry = key + value_head + content_head
    entry_head = prefix(_REQUEST["parameters"], len(entry) + size)
    return bytes(request.SerializeToString()) + entry_head + entry
