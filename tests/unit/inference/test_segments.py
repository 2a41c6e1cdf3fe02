"""A segment has the same text however a caller sends its keys, and in batch scoring."""

from __future__ import annotations

import pytest

from flywheel_common.clock import SystemClock
from flywheel_common.event_time import EventTimeBound
from flywheel_common.scoring.segments import segment_parts
from flywheel_inference.api.convert_requests import ProtoCall
from flywheel_inference.releases.release import FeatureSetContract, FieldSpec
from flywheel_inference.requests.request import RoutedRequest
from flywheel_protos.inference.v1 import inference_pb2 as pb
from flywheel_protos.types.v1.value_pb2 import DATA_TYPE_BOOL, DATA_TYPE_INT64, DATA_TYPE_STRING, Value

CONTRACT = FeatureSetContract(
    "fs",
    (FieldSpec("number", DATA_TYPE_INT64), FieldSpec("text", DATA_TYPE_STRING)),
    (FieldSpec("flag", DATA_TYPE_BOOL),),
)
KEYS = ("flag", "number", "text")


@pytest.mark.parametrize("number", [Value(int64_value=5), Value(double_value=5.0)])
@pytest.mark.parametrize("flag", [True, None])
def test_the_text_of_a_segment_follows_the_declared_types(number: Value, flag: bool | None) -> None:
    sent = pb.PredictRequest(
        entity_keys={"number": number, "text": Value(string_value="a"), "other": Value(string_value="x")},
        request_fields={"flag": Value() if flag is None else Value(bool_value=flag)},
    )
    call = ProtoCall(sent, EventTimeBound(SystemClock(), 300))
    keys, fields = call.bind(CONTRACT)
    request = RoutedRequest(
        call=call,
        contract=CONTRACT,
        prediction_id="id",
        keys=keys,
        fields=fields,
        as_of_micros=None,
        event_micros=0,
        subject="s",
        segment_keys=KEYS,
        started=0.0,
    )
    text = "" if flag is None else "True"
    assert request.segment == f"flag={text},number=5,text=a"
    # Batch scoring has the values of a table, whose columns have the declared types.
    assert request.segment.split(",") == segment_parts(KEYS, [flag, 5, "a"])
