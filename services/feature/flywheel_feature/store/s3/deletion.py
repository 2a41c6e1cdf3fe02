"""Deleting objects on S3. pyarrow writes a marker object where the last file of a folder goes; a store that holds folders for
real takes the marker for a file, or refuses it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from flywheel_common.errors import Unavailable


class S3Deletion:
    """Blocks; may be called from any thread."""

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

    def delete(self, paths: Iterable[str]) -> None:
        """Objects named `bucket/key`; one that is not there counts as deleted. Raises Unavailable OBJECT_STORE_DOWN."""
        for path in paths:
            bucket, _, key = path.partition("/")
            try:
                self._connected().delete_object(Bucket=bucket, Key=key)
            except (BotoCoreError, ClientError) as error:
                raise Unavailable(
                    f"The object store does not delete s3://{path} now.", reason="OBJECT_STORE_DOWN"
                ) from error

    def _connected(self) -> Any:
        # Made when it is needed: a client takes a tenth of a second, and most processes delete nothing.
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
