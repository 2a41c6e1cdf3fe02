"""Times and values that callers send with predictions and outcomes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from flywheel_common.clock import ManualClock
from flywheel_common.errors import EventTimeOutOfRange
from flywheel_common.event_time import EventTimeBound
from flywheel_inference.api.convert_requests import ProtoCall, outcome_rows
from flywheel_inference.outcomes.errors import InvalidOutcomeValue
from flywheel_inference.releases.release import FeatureSetContract, FieldSpec
from flywheel_protos.inference.v1 import inference_pb2 as pb
from flywheel_protos.types.v1 import value_pb2

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
BOUND = EventTimeBound(ManualClock(NOON), 300)
OUT_OF_RANGE = [
    datetime(1970, 1, 1, tzinfo=UTC),
    NOON + timedelta(seconds=301),
    datetime(9999, 12, 31, tzinfo=UTC),
]


@pytest.mark.parametrize("moment", OUT_OF_RANGE)
def test_a_prediction_out_of_time_is_refused(moment: datetime) -> None:
    request = pb.PredictRequest()
    request.as_of.FromDatetime(moment)
    with pytest.raises(EventTimeOutOfRange, match="as_of"):
        ProtoCall(request, BOUND)


def test_a_prediction_of_the_past_or_of_now_is_accepted() -> None:
    assert ProtoCall(pb.PredictRequest(), BOUND).as_of_micros is None
    request = pb.PredictRequest()
    request.as_of.FromDatetime(datetime(2013, 1, 1, tzinfo=UTC))
    # date -u -d 2013-01-01T00:00:00Z +%s, times 10^6
    assert ProtoCall(request, BOUND).as_of_micros == 1_356_998_400_000_000


@pytest.mark.parametrize("moment", OUT_OF_RANGE)
def test_an_outcome_out_of_time_is_refused_with_its_place(moment: datetime) -> None:
    good, bad = pb.Outcome(prediction_id="a", value=1.0), pb.Outcome(prediction_id="b", value=1.0)
    bad.event_time.FromDatetime(moment)
    with pytest.raises(EventTimeOutOfRange) as raised:
        outcome_rows([good, bad], 7, BOUND)
    assert raised.value.metadata["field"] == "outcomes[1].event_time"
    assert outcome_rows([good], 7, BOUND)[0].event_micros == 7


def test_an_outcome_without_a_value_is_not_the_label_zero() -> None:
    with pytest.raises(InvalidOutcomeValue, match="has no value"):
        outcome_rows([pb.Outcome(prediction_id="a", name="label", value=None)], 7, BOUND)
    assert outcome_rows([pb.Outcome(prediction_id="a", value=0.0)], 7, BOUND)[0].value == 0.0


def test_nan_in_a_request_field_is_null() -> None:
    contract = FeatureSetContract(
        "projects/p/featureSets/f/versions/1", (), (FieldSpec("x", value_pb2.DATA_TYPE_FLOAT64),)
    )
    call = ProtoCall(pb.PredictRequest(), BOUND)
    assert call.as_of_micros is None
    request = pb.PredictRequest(request_fields={"x": value_pb2.Value(double_value=float("nan"))})
    assert ProtoCall(request, BOUND).bind(contract) == ((), (None,))
