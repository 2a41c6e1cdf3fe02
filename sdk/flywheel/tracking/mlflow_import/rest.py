"""Calls of MLflow's REST API, with the standard library."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import Request, urlopen

API = "/api/2.0/mlflow/"
CALL_SECONDS = 60.0
MAX_ERROR = 500


class MlflowServerError(ValueError):
    """A call that the server did not answer; `status` is 0 without an answer."""

    def __init__(self, url: str, status: int, text: str) -> None:
        super().__init__(f"MLflow at {url} answers {status}: {text}" if status else f"{url}: {text}")
        self.status = status


class MlflowServer:
    """A server of MLflow, read only.

    Credentials are those of MLflow's own client: MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and
    MLFLOW_TRACKING_PASSWORD.
    """

    def __init__(self, url: str, environment: Mapping[str, str] = os.environ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.username or parts.query:
            raise ValueError(f"{url!r} is no URL such as https://mlflow.example.com.")
        self.url = url.rstrip("/")
        self._headers = {"Accept-Encoding": "identity", **_authorization(environment)}

    def get(self, call: str, parameters: Mapping[str, object]) -> dict[str, Any]:
        """The answer of a GET. Raises MlflowServerError."""
        return self._json(f"{API}{call}?{urlencode(dict(parameters))}", None)

    def post(self, call: str, message: Mapping[str, object]) -> dict[str, Any]:
        """The answer of a POST. Raises MlflowServerError."""
        return self._json(f"{API}{call}", json.dumps(message).encode())

    def pages(self, call: str, message: Mapping[str, object], items: str, *, by_get: bool) -> Iterator[Any]:
        """The items of all pages. Raises MlflowServerError."""
        token = ""
        while True:
            wanted = {**message, **({"page_token": token} if token else {})}
            answer = self.get(call, wanted) if by_get else self.post(call, wanted)
            yield from answer.get(items, ())
            following = answer.get("next_page_token") or ""
            if not following or following == token:
                return
            token = following

    @contextmanager
    def file(self, path: str, parameters: Mapping[str, object]) -> Iterator[Path]:
        """A file of the server, for the time of the block. Raises MlflowServerError."""
        with tempfile.TemporaryDirectory(prefix="flywheel-") as folder:
            target = Path(folder) / "file"
            with self._open(f"{path}?{urlencode(dict(parameters))}", None) as answer, target.open("wb") as to:
                try:
                    shutil.copyfileobj(answer, to, 1 << 20)
                except (HTTPException, OSError) as error:
                    raise MlflowServerError(self.url, 0, f"{path} broke off: {error}") from error
            yield target

    def _json(self, path: str, body: bytes | None) -> dict[str, Any]:
        with self._open(path, body) as answer:
            try:
                found = json.loads(answer.read())
            except (HTTPException, OSError, ValueError) as error:
                raise MlflowServerError(self.url, 0, f"{path} is no answer of MLflow: {error}") from error
        if not isinstance(found, dict):
            raise MlflowServerError(self.url, 0, f"{path} is no answer of MLflow")
        return found

    def _open(self, path: str, body: bytes | None) -> HTTPResponse:
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        request = Request(self.url + quote(path, safe="/?&=%+-_.~"), body, headers)
        try:
            answer: HTTPResponse = urlopen(request, timeout=CALL_SECONDS)
        except HTTPError as error:
            with error:
                raise MlflowServerError(self.url, error.code, _message(error)) from error
        except (URLError, HTTPException, OSError) as error:
            raise MlflowServerError(self.url, 0, str(getattr(error, "reason", error))) from error
        return answer


def _authorization(environment: Mapping[str, str]) -> dict[str, str]:
    token, user = environment.get("MLFLOW_TRACKING_TOKEN"), environment.get("MLFLOW_TRACKING_USERNAME")
    if user:
        pair = f"{user}:{environment.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _message(error: HTTPError) -> str:
    """What the body of a refusal says: MLflow's message, or the beginning of another text."""
    try:
        text = error.read(64 * 1024).decode(errors="replace")
        return str(json.loads(text)["message"])[:MAX_ERROR]
    except (HTTPException, OSError, ValueError, KeyError, TypeError):
        return str(error.reason)
