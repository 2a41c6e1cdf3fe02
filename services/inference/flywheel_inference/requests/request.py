"""A prediction request: as the caller sent it, and after routing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from flywheel_common.scoring.cached_prediction import joined_keys
from flywheel_common.scoring.segments import segment_parts, threshold_of
from flywheel_inference.releases.release import FeatureSetContract, ReleaseSpec
from flywheel_inference.releases.rollout_step import NO_ROLLOUT, RolloutStep
from flywheel_inference.requests.errors import InvalidPredictionId

MAX_ID_LENGTH = 128


class PredictCall(Protocol):
    """A request before routing: which release answers, and what that release needs, is not known yet."""

    model: str
    subject: str
    prediction_id: str
    as_of_micros: int | None
    include_features: bool
    size_bytes: int
    variant: str
    """The variant that must answer: champion, challenger or the name of one; empty: the route chooses."""
    priority: int
    """Number of an inference.v1.Priority."""

    def bind(self, contract: FeatureSetContract) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The join keys and request fields of a feature set, in its order and types; a null request field is
        None. Raises InvalidArgument MISSING_JOIN_KEY, MISSING_REQUEST_FIELD, WRONG_TYPE."""
        ...


class RoutedRequest:
    """A request bound to a feature set and a role.

    `contract`: feature set whose keys and fields it has. `as_of_micros` None: now. `event_micros`: event time
    of the prediction. `started`: on time.perf_counter. `role` and `step` (`routing.route`): why its
    release answers. `copies`: releases that get a shadow copy, with the step to which it belongs. `segment`:
    `origin=JFK,carrier=UA` for the segment keys of the release; empty when it has none.
    """

    __slots__ = (
        "as_of_micros",
        "call",
        "contract",
        "copies",
        "event_micros",
        "fields",
        "keys",
        "prediction_id",
        "role",
        "segment",
        "started",
        "step",
        "subject",
    )

    def __init__(
        self,
        *,
        call: PredictCall,
        contract: FeatureSetContract,
        prediction_id: str,
        keys: tuple[Any, ...],
        fields: tuple[Any, ...],
        as_of_micros: int | None,
        event_micros: int,
        subject: str,
        segment_keys: tuple[str, ...],
        started: float,
        role: int = 1,
        step: RolloutStep = NO_ROLLOUT,
        copies: tuple[tuple[Any, RolloutStep], ...] = (),
    ) -> None:
        self.call = call
        self.contract = contract
        self.prediction_id = prediction_id
        self.keys = keys
        self.fields = fields
        self.as_of_micros = as_of_micros
        self.event_micros = event_micros
        self.subject = subject
        self.started = started
        self.role = role
        self.step = step
        self.copies = copies
        self.segment = ",".join(self.segment_parts(segment_keys))

    def bound_to(self, contract: FeatureSetContract, segment_keys: tuple[str, ...]) -> RoutedRequest:
        """The same request with the keys and fields of a feature set and the segment of these keys, for a
        challenger. Raises InvalidArgument."""
        same = contract.feature_set == self.contract.feature_set
        keys, fields = (self.keys, self.fields) if same else self.call.bind(contract)
        return RoutedRequest(
            call=self.call,
            contract=contract,
            prediction_id=self.prediction_id,
            keys=keys,
            fields=fields,
            as_of_micros=self.as_of_micros,
            event_micros=self.event_micros,
            subject=self.subject,
            segment_keys=segment_keys,
            started=self.started,
        )

    def segment_parts(self, segment_keys: tuple[str, ...]) -> list[str]:
        """`origin=JFK`, `carrier=UA` for names of join keys and request fields. A name that the contract
        lacks is null: the failure of a challenger is logged with the request as the champion has it."""
        if not segment_keys:
            return []
        values = self.named_values()
        return segment_parts(segment_keys, [values.get(key) for key in segment_keys])

    def named_values(self) -> dict[str, Any]:
        """The join keys and request fields by name."""
        return dict(zip(self.contract.names, (*self.keys, *self.fields), strict=True))


def subject_of(keys: tuple[Any, ...]) -> str:
    """The default routing subject: the joined keys, or a single key as it is."""
    return str(keys[0]) if len(keys) == 1 else joined_keys(keys)


def thresholds_of(release: ReleaseSpec, requests: Iterable[RoutedRequest]) -> list[float]:
    """The threshold for each request: that of its whole segment, else of the first segment key that has one,
    else the release's. Empty when the release has no thresholds of segments."""
    own = release.segment_thresholds
    if not own:
        return []
    keys = release.segment_keys
    return [threshold_of(own, request.segment_parts(keys), release.threshold) for request in requests]


def checked_id(prediction_id: str) -> str:
    """The id as it was sent. Raises InvalidPredictionId when it is too long."""
    if len(prediction_id) > MAX_ID_LENGTH:
        raise InvalidPredictionId(
            f"prediction_id has {len(prediction_id)} characters: send at most {MAX_ID_LENGTH}."
        )
    return prediction_id
