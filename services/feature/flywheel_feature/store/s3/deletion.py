"""Deletes objects on S3, through botocore.

pyarrow is not used because it writes an empty object `folder/` when it deletes the last file of a folder, and
other clients list that object as a file.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, Protocol, Self

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from flywheel_common.config import S3Settings
from flywheel_feature.tables.errors import ObjectStoreDown


class Deletion(Protocol):
    """Deletes objects by `bucket/key`; they need not exist. Raises Unavailable OBJECT_STORE_DOWN."""

    def delete(self, paths: Iterable[str]) -> None: ...


class S3Deletion:
    """Deletes objects of one object store. Blocks; may be called from any thread."""

    def __init__(
        self, endpoint: str, access_key: str, secret_key: str, timeout_seconds: float = 30.0
    ) -> None:
        self._endpoint = endpoint if "://" in endpoint else f"http://{endpoint}"
        self._credentials = {"aws_access_key_id": access_key, "aws_secret_access_key": secret_key}
        self._config = Config(
            signature_version="s3v4",
            connect_timeout=5.0,
            read_timeout=timeout_seconds,
            s3={"addressing_style": "path"},
        )
        self._lock = threading.Lock()
        self._client: Any = None

    @classmethod
    def from_settings(cls, settings: S3Settings) -> Self:
        return cls(
            settings.s3_endpoint,
            settings.s3_access_key.get_secret_value(),
            settings.s3_secret_key.get_secret_value(),
        )

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects by `bucket/key`; they need not exist. Raises Unavailable OBJECT_STORE_DOWN."""
        for path in paths:
            bucket, _, key = path.partition("/")
            try:
                self._connected().delete_object(Bucket=bucket, Key=key)
            except (BotoCoreError, ClientError) as error:
                raise ObjectStoreDown(f"The object store did not delete s3://{path}: retry.") from error

    def _connected(self) -> Any:
        # Created when needed: a client takes a tenth of a second, and most processes delete nothing.
        with self._lock:
            if self._client is None:
                session = botocore.session.get_session()
                self._client = session.create_client(
                    "s3",
                    region_name="us-east-1",
                    endpoint_url=self._endpoint,
                    config=self._config,
                    **self._credentials,
                )
        return self._client
