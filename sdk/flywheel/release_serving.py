"""How a release is served: policies of its features, cost mode, placement and prices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from google.protobuf import json_format

from flywheel_protos.registry.v1 import model_pb2

FIELDS = ("feature_policies", "serving_policy", "cached_max_age")


@dataclass(frozen=True, kw_only=True)
class ReleaseServing:
    """The parts of a Release that say how it is served; a part that is None is left as it is.

    `feature_policies`: what the model gets for a missing or stale feature. `serving_policy`: placement, cost
    mode and prices. `cached_max_age`: largest age of a batch prediction that may answer, which a cost mode
    needs.
    """

    feature_policies: Sequence[model_pb2.FeaturePolicy] | None = None
    serving_policy: model_pb2.ServingPolicy | None = None
    cached_max_age: timedelta | None = None

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parses an object with some of these fields, each in the JSON of protobuf (`"3600s"`). Raises
        ValueError with the name of a field that is unknown or malformed."""
        found = json.loads(text)
        # A list of other fields, a number or a text is refused as unknown or by the parser below.
        if not isinstance(found, dict):
            found = {str(found)[:40]: None}
        if unknown := found.keys() - set(FIELDS):
            raise ValueError(f"unknown field {min(unknown)}: expected some of {', '.join(FIELDS)}")
        body = {name: found[name] for name in FIELDS[:2] if name in found}
        if "cached_max_age" in found:
            body["fallback"] = {"cached_max_age": found["cached_max_age"]}
        try:
            parsed = json_format.ParseDict(body, model_pb2.Release())
        except json_format.ParseError as error:
            raise ValueError(str(error)) from None
        return cls(
            feature_policies=list(parsed.feature_policies) if "feature_policies" in found else None,
            serving_policy=parsed.serving_policy if "serving_policy" in found else None,
            cached_max_age=(
                parsed.fallback.cached_max_age.ToTimedelta() if "cached_max_age" in found else None
            ),
        )

    def apply_to(self, release: model_pb2.Release) -> None:
        """Replaces the parts of the release that are not None."""
        if self.feature_policies is not None:
            del release.feature_policies[:]
            release.feature_policies.extend(self.feature_policies)
        if self.serving_policy is not None:
            release.serving_policy.CopyFrom(self.serving_policy)
        if self.cached_max_age is not None:
            release.fallback.cached_max_age.FromTimedelta(self.cached_max_age)
