"""A release whose parts do not fit its signature is not decoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flywheel_common.errors import InvalidArgument
from flywheel_common.scoring.feature_policy import ALLOW, DEFAULT, FAIL, FeaturePolicy
from flywheel_common.signature import FLOAT64, OutputKind
from flywheel_common.signature_messages import tensor_message
from flywheel_common.value import from_python
from flywheel_inference.encoding.release_messages import release_spec
from tests.support.builders.kinds import KINDS
from tests.support.peers.inference import RegistryServicer, kind_release

Change = Callable[[Any], None]


def release(kind: str, **fields: Any) -> Any:
    return kind_release(RegistryServicer(), 1, KINDS[kind](), **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_signature_and_golden_rows_of_every_kind_are_decoded(kind: str) -> None:
    model = KINDS[kind]()
    spec = release_spec(release(kind), "digest")
    assert spec.signature == model.signature
    assert spec.golden.tensors.keys() == model.tensors.keys()
    for name, tensor in model.tensors.items():
        np.testing.assert_array_equal(spec.golden.tensors[name], tensor)
    np.testing.assert_array_equal(spec.golden.output, model.output)
    assert spec.golden.output.dtype == model.output.dtype


def test_golden_rows_of_a_signature_without_tensors_are_the_tensor_input() -> None:
    message = RegistryServicer().release(1, (0.5, -0.25, 1.0))
    spec = release_spec(message, "digest")
    rows = np.frombuffer(message.model_version.golden_rows.tensors[0].data, "<f4").reshape(3, 3)
    np.testing.assert_array_equal(spec.golden.tensors["INPUT"], rows)
    assert (spec.golden.output.shape, spec.digest) == ((3, 1), "digest")
    assert spec.signature.output.kind is OutputKind.BINARY
    assert spec.fallback.default == (0.25,)


def drop_tensor(version: Any) -> None:
    del version.golden_rows.tensors[0]


def other_type(version: Any) -> None:
    version.golden_rows.tensors[4].CopyFrom(tensor_message("wide", 3, np.zeros((4, 1))))


def other_rows(version: Any) -> None:
    version.golden_rows.tensors[4].CopyFrom(tensor_message("wide", FLOAT64, np.zeros((3, 1))))


def other_output_name(version: Any) -> None:
    version.golden_rows.output.name = "label"


def truncated(version: Any) -> None:
    version.golden_rows.output.data = version.golden_rows.output.data[:-1]


def undeclared_tensor(version: Any) -> None:
    version.signature.inputs[0].tensor = "other"


@pytest.mark.parametrize(
    "change",
    [drop_tensor, other_type, other_rows, other_output_name, truncated, undeclared_tensor],
)
def test_a_version_with_other_golden_rows_is_refused(change: Change) -> None:
    message = release("binary")
    change(message.model_version)
    with pytest.raises(ValueError, match=r"golden rows|bytes|declare"):
        release_spec(message, "digest")


def test_golden_rows_with_another_width_are_refused() -> None:
    message = release("multiclass")
    message.model_version.signature.output.multiclass.class_names.append("never")
    with pytest.raises(ValueError, match="golden rows"):
        release_spec(message, "digest")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("binary", {"calibration": {"temperature": {"temperature": 1.0}}}),
        ("multiclass", {"calibration": {"platt": {"slope": 1.0}}}),
        ("multiclass", {"calibration": {"temperature": {"temperature": 0.0}}}),
        ("regression", {"calibration": {"isotonic": {"x": [0.0], "y": [0.0]}}}),
        ("binary", {"calibration": {"platt": {"slope": float("nan")}}}),
        ("binary", {"fallback": {"default_values": [0.5]}}),
        ("multiclass", {"fallback": {"default_score": 0.5}}),
        ("multiclass", {"fallback": {"default_values": [0.5, 0.5]}}),
        ("vector", {"fallback": {"default_values": [1, 2, 3, float("nan")]}}),
        ("regression", {"fallback": {"default_score": float("inf")}}),
    ],
)
def test_calibration_and_fallback_must_fit_the_kind(kind: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"calibration|fallback|default"):
        release_spec(release(kind, **fields), "d")


def test_feature_policies_have_defaults_in_the_type_of_their_input() -> None:
    policies: list[dict[str, Any]] = [
        {"feature": "m__text", "missing": 2, "default_value": {"string_value": "?"}},
        {"feature": "m__count", "missing": 3, "stale": 2, "default_value": {"double_value": 7.0}},
        {"feature": "m__vector", "missing": 2, "default_value": from_python([0.5, 1.5, 2.5])},
        {"feature": "hist__delay", "stale": 3},
    ]
    assert release_spec(release("binary", feature_policies=policies), "d").policies == (
        FeaturePolicy("m__text", DEFAULT, ALLOW, "?"),
        FeaturePolicy("m__count", FAIL, DEFAULT, 7),
        FeaturePolicy("m__vector", DEFAULT, ALLOW, [0.5, 1.5, 2.5]),
        FeaturePolicy("hist__delay", ALLOW, FAIL),
    )


@pytest.mark.parametrize(
    "policy",
    [
        {"feature": "other", "missing": 3},
        {"feature": "m__count", "missing": 2},
        {"feature": "m__count", "stale": 2, "default_value": {"double_value": 7.5}},
        {"feature": "m__text", "missing": 2, "default_value": {"bool_value": True}},
        {"feature": "m__vector", "missing": 2, "default_value": from_python([0.5, 1.5])},
    ],
)
def test_a_policy_that_does_not_fit_its_input_is_refused(policy: dict[str, Any]) -> None:
    with pytest.raises((ValueError, InvalidArgument)):
        release_spec(release("binary", feature_policies=[policy]), "d")
