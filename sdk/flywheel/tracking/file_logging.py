"""What a run logs as files: artifacts, texts and models."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from flywheel.tracking.endpoint import Endpoint
from flywheel.tracking.registering import described_model, register_model
from flywheel.tracking.spool import Kind, Spool
from flywheel.tracking.values import check_artifact_name
from flywheel_common.signature import Signature


class FileLogging:
    """The calls of a run about files, which are copied into its spool at once."""

    name: str
    _endpoint: Endpoint
    _spool: Spool

    def _check_open(self) -> None:
        """Raises RunFinished."""
        raise NotImplementedError

    def _append(self, kind: Kind, payload: bytes) -> None:
        """Append a record behind the points that were logged before it."""
        raise NotImplementedError

    def log_artifact(self, path: str | Path, name: str = "") -> None:
        """Add a file, or all files of a folder, under `name` (default: the name of the file or folder).

        The file is copied at once, so that it may change or go. Raises TrackingError, SpoolFull, OSError.
        """
        path = Path(path)
        name = name or path.name
        files = {name: path}
        if path.is_dir():
            files = {
                f"{name}/{one.relative_to(path).as_posix()}": one
                for one in sorted(path.rglob("*"))
                if one.is_file()
            }
        for artifact in files:
            check_artifact_name(artifact)
        for artifact, file in files.items():
            self._add_file(artifact, file)

    def log_text(self, text: str | bytes, name: str) -> None:
        """Add an artifact with this content. Raises TrackingError, SpoolFull."""
        check_artifact_name(name)
        with tempfile.NamedTemporaryFile(prefix="flywheel-") as file:
            file.write(text.encode() if isinstance(text, str) else text)
            file.flush()
            self._add_file(name, Path(file.name))

    def log_model(
        self,
        model: str | Path | bytes | Any,
        signature: Signature | Message | None = None,
        name: str = "model",
        *,
        register: str = "",
        aliases: Sequence[str] = (),
        **options: Any,
    ) -> str:
        """Add an ONNX model (a path, bytes, or an `onnx.ModelProto`) as `{name}/model.onnx`, and its
        signature as `{name}/signature.json`. Weights that a file has in other files become part of it.

        `register` names a model of the registry: the file becomes a version of it that names this run as its
        training run, with these aliases, and its full name is returned. `options` are those of
        `Client.register`, such as `feature_set` (needed without a signature) and `metrics`, or addresses of
        services. The registry must answer; the artifacts of the run are kept in any case.

        Raises TrackingError for a signature that is not valid and for weights that cannot be read or do not
        fit into one file of 2 GiB, SpoolFull, OSError, and what `Client.register` raises.
        """
        content, described = described_model(model, signature)
        check_artifact_name(f"{name}/model.onnx")
        if isinstance(content, bytes):
            self.log_text(content, f"{name}/model.onnx")
        else:
            self._add_file(f"{name}/model.onnx", content)
        if described is not None:
            self.log_text(
                MessageToJson(described, preserving_proto_field_name=True), f"{name}/signature.json"
            )
        if not register:
            return ""
        return register_model(self.name, self._endpoint, register, content, described, aliases, options)

    def _add_file(self, name: str, path: Path) -> None:
        self._check_open()
        file, size, sha256 = self._spool.add_file(path)
        record = {"name": name, "file": file, "size": size, "sha256": sha256}
        self._append(Kind.ARTIFACT, json.dumps(record).encode())
