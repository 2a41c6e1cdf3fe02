"""Where the trainer of a run is, and how its calls are authenticated and encrypted."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from flywheel_common.errors import Unauthenticated
from flywheel_common.grpc.channel import ClientTls, channel_credentials

Token = str | Callable[[], str]
_FILES = ("ca_file", "cert_file", "key_file")


@dataclass(frozen=True)
class Endpoint:
    """The address host:port, the bearer token (a function is called before each call), and TLS; without it
    nothing is encrypted. `repr` leaves the token out."""

    address: str
    token: Token = ""
    tls: ClientTls | None = None

    def __repr__(self) -> str:
        return f"Endpoint({self.address!r})"

    @classmethod
    def of(cls, address: str = "", token: Token = "", tls: ClientTls | None = None) -> Endpoint:
        """What is given, else FLYWHEEL_TRAINER_ADDRESS or the trainer of a local platform, and
        FLYWHEEL_TOKEN."""
        found = address or os.environ.get("FLYWHEEL_TRAINER_ADDRESS", "127.0.0.1:7103")
        return cls(found, token or os.environ.get("FLYWHEEL_TOKEN", ""), tls)

    def channel(self) -> grpc.Channel:
        """A channel of its own. Raises OSError for a file of TLS that cannot be read."""
        options: list[tuple[str, Any]] = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.keepalive_time_ms", 20_000),
        ]
        if self.tls is None:
            return grpc.insecure_channel(self.address, options=options)
        if self.tls.server_name:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return grpc.secure_channel(self.address, channel_credentials(self.tls), options=options)

    def metadata(self) -> list[tuple[str, str]]:
        """The metadata of a call. Raises Unauthenticated if the function of the token fails."""
        try:
            # The text of a file ends with a line break, which no header can have.
            token = (self.token() if callable(self.token) else self.token).strip()
        except Exception as error:
            raise Unauthenticated(f"The function of the token failed: {error!r}.") from error
        return [("authorization", f"Bearer {token}")] if token else []

    def describe(self) -> dict[str, Any]:
        """What a spool keeps, so that another process can send it: everything but the token."""
        if self.tls is None:
            return {"address": self.address}
        files = {name: str(getattr(self.tls, name) or "") for name in _FILES}
        return {"address": self.address, "tls": {**files, "server_name": self.tls.server_name}}

    @classmethod
    def described(cls, description: Mapping[str, Any], address: str = "") -> Endpoint:
        """The endpoint that a spool describes, or one at another address, with FLYWHEEL_TOKEN."""
        tls = description.get("tls")
        if tls is None:
            return cls.of(address or description["address"])
        files = {name: Path(tls[name]) if tls.get(name) else None for name in _FILES}
        found = ClientTls(**files, server_name=tls.get("server_name", ""))
        return cls.of(address or description["address"], tls=found)
