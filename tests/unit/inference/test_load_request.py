"""The encoding of a request to load a model, against protobuf's."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2 as pb

from flywheel_inference.store.triton.load_request import request_head


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 3_000_000])
def test_the_head_and_the_content_of_the_file_are_a_request_to_load_a_model(size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    expected = pb.RepositoryModelLoadRequest(model_name="p.m.v3")
    expected.parameters["config"].string_param = '{"name": "p.m.v3"}'
    expected.parameters["file:1/model.py"].bytes_param = b"import json"
    expected.parameters["file:1/model.onnx"].bytes_param = content
    head = request_head("p.m.v3", '{"name": "p.m.v3"}', {"file:1/model.py": b"import json"}, size)
    assert expected == pb.RepositoryModelLoadRequest.FromString(head + content)
    assert len(head) + size == expected.ByteSize()
