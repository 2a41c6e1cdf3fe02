"""Clients of Flywheel from an Airflow connection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.sdk import BaseHook, Connection

import flywheel as fw
from flywheel_common.grpc.channel import ClientTls


class FlywheelHook(BaseHook):
    """Reads a connection: `host` and `port` of the trainer, the bearer token as password.

    `extra` may have `project` (default: `default`), and for TLS `ca_file`, `cert_file` and `key_file`, or
    `tls: true` for the certificate authorities of the system.
    """

    conn_name_attr = "flywheel_conn_id"
    default_conn_name = "flywheel_default"
    conn_type = "flywheel"
    hook_name = "Flywheel"

    def __init__(self, flywheel_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.flywheel_conn_id = flywheel_conn_id

    def get_conn(self) -> fw.SyncClient:
        """A synchronous client; use it in a `with` block."""
        return fw.connect(**client_options(self.get_connection(self.flywheel_conn_id)))

    async def client(self) -> fw.Client:
        """An asynchronous client; use it in an `async with` block."""
        return fw.Client(**client_options(await self.aget_connection(self.flywheel_conn_id)))


def client_options(connection: Connection) -> dict[str, Any]:
    """The arguments of `fw.Client`. Raises ValueError for a connection without a host."""
    if not connection.host:
        raise ValueError(f"The connection {connection.conn_id!r} has no host: give the trainer's address.")
    extra = connection.extra_dejson
    names = ("ca_file", "cert_file", "key_file")
    ca, cert, key = (Path(extra[name]) if extra.get(name) else None for name in names)
    encrypted = bool(extra.get("tls") or ca or cert)
    return {
        "project": extra.get("project", "default"),
        "trainer": f"{connection.host}:{connection.port}" if connection.port else connection.host,
        "token": connection.password or "",
        "tls": ClientTls(ca_file=ca, cert_file=cert, key_file=key) if encrypted else None,
    }
