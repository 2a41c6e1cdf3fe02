"""Errors of the gRPC edge: credentials, admission, parsing, and calls to peers."""

from __future__ import annotations

from flywheel_common.errors import (
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)


class MissingToken(Unauthenticated):
    """The call carries no bearer token."""

    reason = "MISSING_TOKEN"
    remedy = "Send the metadata `authorization: Bearer <token>`."


class ExpiredToken(Unauthenticated):
    """The bearer token has expired."""

    reason = "EXPIRED_TOKEN"
    remedy = "Fetch a new token and send the call again."


class InvalidToken(Unauthenticated):
    """The signature, issuer, audience or claims of the bearer token are not accepted."""

    reason = "INVALID_TOKEN"
    remedy = "Get a token from the issuer that the service is configured for (`jwt_issuer`, `jwt_audience`)."


class SigningKeysUnavailable(Unavailable):
    """The service cannot fetch the keys that verify bearer tokens."""

    reason = "SIGNING_KEYS_UNAVAILABLE"
    remedy = "Retry with backoff; check that the service reaches `jwt_jwks_url`."


class RoleRequired(PermissionDenied):
    """The caller has none of the roles that the method or action requires."""

    reason = "ROLE_REQUIRED"
    remedy = "Call with an identity that has one of the roles in the message (see permissions.md)."


class Overloaded(ResourceExhausted):
    """The server has reached its limit of concurrent calls or streams."""

    reason = "OVERLOADED"
    remedy = "Retry after the delay in RetryInfo, with backoff; add replicas if it lasts."


class MessageTooLarge(InvalidArgument):
    """The request is larger than the service accepts."""

    reason = "MESSAGE_TOO_LARGE"
    remedy = "Split the request; the limit is in the metadata field `limit_bytes`."


class MalformedRequest(InvalidArgument):
    """The bytes of the request are not the request message of the method."""

    reason = "MALFORMED_REQUEST"
    remedy = "Generate client and server from the same protos."


class InvalidText(InvalidArgument):
    """A text field contains a NUL character."""

    reason = "INVALID_TEXT"
    remedy = "Remove the NUL character from the field in the metadata."


class InvalidTimestamp(InvalidArgument):
    """A timestamp is outside the years 1 to 9999."""

    reason = "INVALID_TIMESTAMP"
    remedy = "Send a google.protobuf.Timestamp that is in range."


class InvalidDuration(InvalidArgument):
    """A duration is longer than 10,000 years, or its seconds and nanoseconds have different signs."""

    reason = "INVALID_DURATION"
    remedy = "Send a google.protobuf.Duration that is in range."


class PeerUnavailable(Unavailable):
    """Another service that this call needs is down or does not answer in time: FEATURE_UNAVAILABLE,
    REGISTRY_UNAVAILABLE, TRAINER_UNAVAILABLE, INFERENCE_UNAVAILABLE or MONITOR_UNAVAILABLE."""

    reason = "{PEER}_UNAVAILABLE"
    remedy = "Retry with backoff; check the health of the named service."

    def __init__(self, peer: str) -> None:
        """`peer` is the name of a service, such as `registry`."""
        super().__init__(f"The {peer} service does not answer now: try again.")
        self.reason = f"{peer.upper()}_UNAVAILABLE"
