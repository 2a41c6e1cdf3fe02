"""Import of models from an MLflow registry: the SQLite file of a server, or a server by its URL.

Only ONNX models are taken: a file that would have to be unpickled is never loaded. MLflow need not be
installed.
"""

from __future__ import annotations

import asyncio
import math
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from flywheel.catalog_calls import CatalogCalls
from flywheel.errors import FlywheelError, InvalidModelError, NotFound
from flywheel.onnx_signature import SignatureError
from flywheel.onnx_weights import one_file
from flywheel.registration import MODEL_FILE, RegistrationCalls
from flywheel.tracking.mlflow_import.importing import is_url
from flywheel.tracking.mlflow_import.rest import MlflowServer
from flywheel.tracking.mlflow_import.server_models import ServerModels
from flywheel.tracking.mlflow_import.source import MlflowVersion
from flywheel_protos.registry.v1 import model_pb2

MAX_ID = 63


@dataclass
class MlflowImport:
    """MLflow's `name/version` → version here, those of an earlier import in `unchanged`; `skipped` has a
    sentence for each other one, and for each alias that could not be set."""

    versions: dict[str, str] = field(default_factory=dict)
    unchanged: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


class ModelSource(Protocol):
    """A registry of MLflow, read only. Raises ValueError."""

    def versions(self) -> Iterator[MlflowVersion]:
        """All model versions, by name and number."""
        ...

    def onnx(self, version: MlflowVersion) -> AbstractContextManager[Path]:
        """The ONNX file of a version, with its files of weights, for the time of the block."""
        ...


class DatabaseModels:
    """`ModelSource` of the SQLite file of a server; `artifacts` is its folder `mlflow-artifacts:/`."""

    def __init__(self, database: Path, artifacts: Path | None) -> None:
        self._database, self._artifacts = database, artifacts

    def versions(self) -> Iterator[MlflowVersion]:
        return read_versions(self._database)

    def onnx(self, version: MlflowVersion) -> AbstractContextManager[Path]:
        return nullcontext(onnx_file(version.location, self._artifacts))


class MlflowCalls(CatalogCalls, RegistrationCalls):
    """Imports models from MLflow."""

    async def import_mlflow(
        self,
        origin: str | Path,
        *,
        feature_set: str,
        artifacts: Path | None = None,
        training_runs: Mapping[str, str] | None = None,
        **options: Any,
    ) -> MlflowImport:
        """Registers every ONNX model version of an MLflow registry, with metrics, tags and aliases.

        `origin` is the SQLite file or the URL of a server; `artifacts` is the folder that the server of a
        file keeps as `mlflow-artifacts:/`. `training_runs` has runs here by their MLflow id. `options` are
        those of `register`, such as `kind` and `output`; they count for all models. A version that cannot be
        imported is skipped, and the others go on. A second import changes nothing, and completes an
        interrupted one.
        """
        source: ModelSource = DatabaseModels(Path(origin), artifacts)
        if is_url(origin):
            source = ServerModels(MlflowServer(str(origin)))
        done = MlflowImport()
        for found in await asyncio.to_thread(lambda: list(source.versions())):
            key = f"{found.model}/{found.version}"
            try:
                version = await self._imported(found, key)
                new = version is None or version.artifact_state == model_pb2.ARTIFACT_STATE_PENDING
                if new:
                    run = (training_runs or {}).get(found.run, "")
                    version = await self._import(source, found, version, feature_set, run, options)
            except (FlywheelError, InvalidModelError, SignatureError, OSError, ValueError) as error:
                done.skipped[key] = str(error)
                continue
            assert version is not None
            (done.versions if new else done.unchanged)[key] = version.name
            for alias in found.aliases:
                try:
                    await self._alias(alias, version.name, key, new)
                except FlywheelError as error:
                    done.skipped[f"alias {alias} of {key}"] = str(error)
        return done

    async def _imported(self, found: MlflowVersion, key: str) -> model_pb2.ModelVersion | None:
        """The version that an earlier import made of this one."""
        tags = {"mlflow_version": key, "mlflow_run": found.run}
        try:
            versions = await self.search_versions(models=[model_id(found.model)], tags=tags, limit=1)
        except NotFound:
            return None
        return versions.items[0] if versions.items else None

    async def _import(
        self,
        source: ModelSource,
        found: MlflowVersion,
        started: model_pb2.ModelVersion | None,
        feature_set: str,
        training_run: str,
        options: Mapping[str, Any],
    ) -> model_pb2.ModelVersion:
        opened = source.onnx(found)
        file = await asyncio.to_thread(opened.__enter__)
        try:
            if started is not None:
                # An earlier import ended before the file was stored.
                content = await asyncio.to_thread(one_file, file)
                version = await self.upload_artifact(started.name, MODEL_FILE, content)
                if version.artifact_state == model_pb2.ARTIFACT_STATE_INVALID:
                    raise InvalidModelError(version.name, list(version.check_problems))
                return version
            key = f"{found.model}/{found.version}"
            return await self.register(
                model_id(found.model),
                file,
                feature_set=feature_set,
                metrics=found.metrics,
                tags={**found.tags, "mlflow_version": key, "mlflow_run": found.run},
                description=found.description,
                training_run=training_run,
                **options,
            )
        finally:
            await asyncio.to_thread(opened.__exit__, None, None, None)

    async def _alias(self, alias: str, version: str, key: str, new: bool) -> None:
        """Set an alias; that of a version which was imported before may have been moved here since."""
        alias_id = model_id(alias).replace("_", "-")
        if not new:
            try:
                await self.version_of_alias(version.rpartition("/versions/")[0], alias_id)
                return
            except NotFound:
                pass
        await self.set_alias(alias_id, version, reason=f"imported from MLflow {key}")


def read_versions(database: Path) -> Iterator[MlflowVersion]:
    """The model versions of an MLflow database, by name and number. Raises ValueError."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
            opened.row_factory = sqlite3.Row
            columns = {row["name"] for row in opened.execute("PRAGMA table_info(model_versions)")}
            location = "coalesce(storage_location, source)" if "storage_location" in columns else "source"
            # The only parts of the statement that are not constant are two column names.
            rows = opened.execute(
                f"SELECT name, version, {location} AS location, run_id, description FROM model_versions "
                "WHERE coalesce(current_stage, '') <> 'Deleted_Internal' ORDER BY name, version"
            ).fetchall()
            for row in rows:
                yield _version(opened, row)
    except sqlite3.Error as error:
        raise ValueError(f"{database} is no database of an MLflow registry: {error}") from error


def _version(opened: sqlite3.Connection, row: sqlite3.Row) -> MlflowVersion:
    key, run = (row["name"], row["version"]), row["run_id"] or ""
    metrics = opened.execute("SELECT key, value, is_nan FROM latest_metrics WHERE run_uuid = ?", (run,))
    tags = opened.execute("SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?", key)
    aliases = opened.execute("SELECT alias FROM registered_model_aliases WHERE name = ? AND version = ?", key)
    return MlflowVersion(
        model=row["name"],
        version=int(row["version"]),
        location=row["location"] or "",
        run=run,
        description=row["description"] or "",
        metrics={m["key"]: m["value"] for m in metrics if not m["is_nan"] and math.isfinite(m["value"])},
        tags={tag["key"]: tag["value"] or "" for tag in tags},
        aliases=tuple(alias["alias"] for alias in aliases),
    )


def onnx_file(location: str, artifacts: Path | None) -> Path:
    """The ONNX file below the URI of an MLflow model. Raises ValueError."""
    parts = urlsplit(location)
    if parts.scheme in ("", "file"):
        folder = Path(unquote(parts.path))
    elif parts.scheme == "mlflow-artifacts" and artifacts is not None:
        folder = artifacts / unquote(parts.path).lstrip("/")
        if not folder.resolve().is_relative_to(artifacts.resolve()):
            raise ValueError(f"{location} is outside of the artifacts.")
    else:
        raise ValueError(f"{location} is no local folder: download it, or give the folder of the artifacts.")
    files = sorted(folder.glob("*.onnx"))
    if len(files) != 1:
        raise ValueError(f"{folder} has {len(files)} ONNX files, not one: export the model as ONNX first.")
    return files[0]


def model_id(name: str) -> str:
    """MLflow's name as an id: `Late Arrivals!` → `late-arrivals`."""
    text = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")
    return (text if text[:1].isalpha() else f"m-{text}")[:MAX_ID]
