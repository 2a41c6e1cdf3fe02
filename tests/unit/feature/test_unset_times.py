"""A Timestamp that was never set is refused wherever a request bounds times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_common.errors import EventTimeOutOfRange
from flywheel_feature.api.convert_jobs import to_materialize
from flywheel_feature.api.convert_training_sets import skew_request, training_set_request
from flywheel_protos.feature.v1 import feature_pb2 as pb

DAY = Timestamp(seconds=86_400)
UNSET = Timestamp()


def materialize(**times: Timestamp) -> Any:
    return to_materialize(pb.MaterializeViewRequest(view="projects/p/views/v", **times))


def skew(**times: Timestamp) -> Any:
    return skew_request(pb.CheckSkewRequest(parent="projects/p", predictions_uri="s3://b/p/", **times))


def training_set(**times: Timestamp) -> Any:
    source = {"source": "projects/p/sources/s", "timestamp_field": "t", "start_time": DAY, "end_time": DAY}
    request = pb.BuildTrainingSetRequest(
        parent="projects/p",
        training_set_id="t",
        feature_set="projects/p/featureSets/f",
        spine={"source": {**source, **times}},
    )
    return training_set_request(request)


@pytest.mark.parametrize(
    ("convert", "names"),
    [
        (materialize, ("start_time", "end_time")),
        (skew, ("start_time", "end_time")),
        (training_set, ("start_time", "end_time", "known_before")),
    ],
)
def test_a_bound_of_1970_is_refused_and_named(convert: Callable[..., Any], names: tuple[str, ...]) -> None:
    for name in names:
        with pytest.raises(EventTimeOutOfRange, match=name) as caught:
            convert(**{name: UNSET})
        assert ("OUT_OF_RANGE", name) == (caught.value.reason, caught.value.metadata["field"])
        convert(**{name: Timestamp(nanos=1000)})
    convert()
