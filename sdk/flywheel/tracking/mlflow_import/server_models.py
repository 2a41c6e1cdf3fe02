"""The registered models of an MLflow server, by its REST API."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from flywheel.onnx_weights import weight_files
from flywheel.tracking.mlflow_import.rest import MlflowServer, MlflowServerError
from flywheel.tracking.mlflow_import.source import MlflowVersion, value_of

VERSIONS_PER_PAGE = 1000
FILE = "/model-versions/get-artifact"
_FLAVOR = re.compile(r"^  onnx:\s*$(.*?)(?=^ {0,2}\S|\Z)", re.MULTILINE | re.DOTALL)
_DATA = re.compile(r"^ {4}data:\s*[\"']?([^\"'\n]+?)[\"']?\s*$", re.MULTILINE)


class ServerModels:
    """`ModelSource` of a server."""

    def __init__(self, server: MlflowServer) -> None:
        self._server = server

    def versions(self) -> Iterator[MlflowVersion]:
        query = {"max_results": VERSIONS_PER_PAGE}
        found = list(self._server.pages("model-versions/search", query, "model_versions", by_get=True))
        aliases = self._aliases()
        for one in sorted(found, key=lambda one: (one["name"], int(one["version"]))):
            run, name, version = one.get("run_id") or "", one["name"], int(one["version"])
            yield MlflowVersion(
                model=name,
                version=version,
                location=one.get("source", ""),
                run=run,
                description=one.get("description", ""),
                metrics=self._metrics(run) if run else {},
                tags={tag["key"]: tag.get("value", "") for tag in one.get("tags", ())},
                aliases=tuple(aliases.get((name, version), ())),
            )

    def _aliases(self) -> dict[tuple[str, int], list[str]]:
        found: dict[tuple[str, int], list[str]] = {}
        query = {"max_results": VERSIONS_PER_PAGE}
        for model in self._server.pages("registered-models/search", query, "registered_models", by_get=True):
            for alias in model.get("aliases", ()):
                found.setdefault((model["name"], int(alias["version"])), []).append(alias["alias"])
        return found

    def _metrics(self, run: str) -> dict[str, float]:
        """The last values of a run's metrics that are numbers; none for a run that was deleted for good."""
        try:
            data: dict[str, Any] = self._server.get("runs/get", {"run_id": run})["run"].get("data", {})
        except MlflowServerError as error:
            if error.status != 404:
                raise
            return {}
        values = {metric["key"]: value_of(metric) for metric in data.get("metrics", ())}
        return {key: value for key, value in values.items() if math.isfinite(value)}

    @contextmanager
    def onnx(self, version: MlflowVersion) -> Iterator[Path]:
        """The file that MLmodel names, in a folder with its files of weights. Raises ValueError."""
        of_version = {"name": version.model, "version": version.version}
        with self._server.file(FILE, {**of_version, "path": "MLmodel"}) as described:
            flavor = _FLAVOR.search(described.read_text())
        name = _DATA.search(flavor[1]) if flavor else None
        if name is None:
            raise ValueError("It has no ONNX flavor: export the model as ONNX first.")
        model = PurePosixPath(name[1])
        with tempfile.TemporaryDirectory(prefix="flywheel-") as folder:

            def download(path: PurePosixPath) -> Path:
                to = Path(folder, path.relative_to(model.parent))
                to.parent.mkdir(parents=True, exist_ok=True)
                with self._server.file(FILE, {**of_version, "path": str(path)}) as downloaded:
                    shutil.move(downloaded, to)
                return to

            file = download(model)
            # The names are in the model: MLflow lists no files of a version.
            for weights in weight_files(file.read_bytes()):
                download(model.parent / weights)
            yield file
