"""A small HTTP server with the answers of an MLflow server, in pages of two items.

The forms are those of MLflow 3.17; tests/acceptance imports from the real one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

PAGE = 2
API = "/api/2.0/mlflow/"
Message = dict[str, Any]


@dataclass
class MlflowAnswers:
    """A context manager. What it answers may be changed while it runs."""

    experiments: Sequence[Message] = ()
    runs: Sequence[Message] = ()
    """As `runs/search` answers them."""
    histories: Mapping[tuple[str, str], Sequence[Message]] = field(default_factory=dict)
    """Points by run and key."""
    files: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    """Contents by run, and by path."""
    models: Sequence[Message] = ()
    versions: Sequence[Message] = ()
    version_files: Mapping[tuple[str, int], Mapping[str, bytes]] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    """Statuses of calls that are refused."""
    authorizations: set[str] = field(default_factory=set)
    """The headers of the calls."""

    def __enter__(self) -> Self:
        answers = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                self._answer(url.path, {k: v[0] for k, v in parse_qs(url.query).items()})

            def do_POST(self) -> None:
                self._answer(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, path: str, query: Message) -> None:
                answers.authorizations.add(self.headers.get("Authorization", ""))
                status, body = answers.answer(path.removeprefix(API), query)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                """The output of the tests stays readable."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, call: str, query: Message) -> tuple[int, bytes]:
        """Status and body."""
        if call in self.refused:
            return self.refused[call], json.dumps({"error_code": "X", "message": "refused"}).encode()
        calls: dict[str, Callable[[Message], Any]] = {
            "experiments/search": lambda q: _page("experiments", self.experiments, q),
            "runs/search": lambda q: _page("runs", [run for run in self.runs if _is_wanted(run, q)], q),
            "runs/get": lambda q: {"run": self._run(q["run_id"])},
            "metrics/get-history": lambda q: _page(
                "metrics", self.histories[q["run_id"], q["metric_key"]], q
            ),
            "artifacts/list": lambda q: _page("files", self._listing(q), q),
            "/get-artifact": lambda q: self.files[q["run_id"]][q["path"]],
            "registered-models/search": lambda q: _page("registered_models", self.models, q),
            "model-versions/search": lambda q: _page("model_versions", self.versions, q),
            "/model-versions/get-artifact": lambda q: self.version_files[q["name"], int(q["version"])][
                q["path"]
            ],
        }
        try:
            found = calls[call](query)
        except KeyError as error:
            message = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"no {error} for {call}"}
            return 404, json.dumps(message).encode()
        return 200, found if isinstance(found, bytes) else json.dumps(found).encode()

    def _run(self, uuid: str) -> Message:
        return {run["info"]["run_id"]: run for run in self.runs}[uuid]

    def _listing(self, query: Message) -> list[Message]:
        folder = f"{query['path']}/" if query.get("path") else ""
        contents = self.files.get(query["run_id"], {})
        below = [name for name in contents if name.startswith(folder)]
        entries: dict[str, Message] = {}
        for name in below:
            first, separator, _ = name.removeprefix(folder).partition("/")
            path = folder + first
            size = {} if separator else {"file_size": len(contents[name])}
            entries[path] = {"path": path, "is_dir": bool(separator), **size}
        return list(entries.values())


def _is_wanted(run: Message, query: Message) -> bool:
    info = run["info"]
    return info["experiment_id"] in query["experiment_ids"] and info["lifecycle_stage"] == "active"


def _page(items: str, found: Sequence[Message], query: Message) -> Message:
    start = int(query.get("page_token", 0))
    end = start + PAGE
    following = {"next_page_token": str(end)} if end < len(found) else {}
    # An empty list is left out, as by the JSON of protobuf.
    return {**({items: list(found[start:end])} if found else {}), **following}
