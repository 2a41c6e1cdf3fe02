"""What a gateway answers about a model that it does not serve."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flywheel_common.errors import FlywheelError
from flywheel_inference.serving.desired_state import DesiredModel
from flywheel_inference.serving.state import ServingState
from tests.support.builders.inference import LOG_SPEC

MODEL = "projects/p/models/late"
RELEASE = replace(LOG_SPEC, name=f"{MODEL}/releases/1")


@pytest.mark.parametrize(
    ("desired", "reason", "retryable"),
    [
        ([], "UNKNOWN_MODEL", False),
        ([DesiredModel(MODEL, 1, None)], "UNKNOWN_MODEL", False),
        ([DesiredModel(MODEL, 1, None, RELEASE)], "RELEASE_NOT_READY", True),
        ([DesiredModel(MODEL, 2, RELEASE)], "RELEASE_NOT_READY", True),
    ],
)
def test_a_model_on_its_way_is_not_ready_and_another_unknown(
    desired: list[DesiredModel], reason: str, retryable: bool
) -> None:
    state = ServingState()
    state.accept(desired)
    with pytest.raises(FlywheelError) as error:
        state.route(MODEL)
    assert (reason, retryable) == (error.value.reason, error.value.retryable)
