"""One prediction on its way through the gateway."""

from __future__ import annotations

from typing import Any, Protocol

from flywheel_inference.releases.release import Contract

MAX_ID_LENGTH = 128


class PredictCall(Protocol):
    """A caller's request, before it is known which release answers and what that release needs."""

    model: str
    subject: str
    prediction_id: str
    as_of_micros: int | None
    include_features: bool

    def bind(self, contract: Contract) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The join keys and request fields of a feature set, in its order and types; a null request field is None.
        Raises InvalidArgument MISSING_JOIN_KEY, MISSING_REQUEST_FIELD, WRONG_TYPE."""
        ...

    def key_text(self, name: str) -> str:
        """An entity key as text, empty when it was not sent: for segments."""
        ...


class Item:
    """A request bound to the release that answers it. `as_of_micros` None = now; `event_micros` is its event time;
    `started` is on time.perf_counter. `role` (events.v1.PredictionRole) and `rollout` say why this release answers;
    `copy_to` is the challenger that gets a shadow copy."""

    __slots__ = (
        "as_of_micros",
        "call",
        "copy_to",
        "event_micros",
        "fields",
        "keys",
        "prediction_id",
        "role",
        "rollout",
        "segment",
        "started",
        "subject",
    )

    def __init__(
        self,
        *,
        call: PredictCall,
        prediction_id: str,
        keys: tuple[Any, ...],
        fields: tuple[Any, ...],
        as_of_micros: int | None,
        event_micros: int,
        subject: str,
        segment: str,
        started: float,
        role: int = 1,
        rollout: str = "",
        copy_to: Any = None,
    ) -> None:
        self.call = call
        self.prediction_id = prediction_id
        self.keys = keys
        self.fields = fields
        self.as_of_micros = as_of_micros
        self.event_micros = event_micros
        self.subject = subject
        self.segment = segment
        self.started = started
        self.role = role
        self.rollout = rollout
        self.copy_to = copy_to


def subject_of(keys: tuple[Any, ...]) -> str:
    """The default routing subject: the entity keys joined by `|`, in key order."""
    return str(keys[0]) if len(keys) == 1 else "|".join(map(str, keys))


def segment_of(call: PredictCall, segment_keys: tuple[str, ...]) -> str:
    """`origin=JFK,carrier=UA` for the release's segment keys; empty when it declares none."""
    return ",".join(f"{key}={call.key_text(key)}" for key in segment_keys)
