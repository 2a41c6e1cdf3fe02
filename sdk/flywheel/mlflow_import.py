"""Import of models from the SQLite file of an MLflow registry.

Only ONNX models are taken: a file that would have to be unpickled is never loaded. The tables are read with
sqlite3, so MLflow need not be installed.
"""

from __future__ import annotations

import asyncio
import math
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from flywheel.catalog_calls import CatalogCalls
from flywheel.errors import FlywheelError, InvalidModelError
from flywheel.onnx_signature import SignatureError
from flywheel.registration import RegistrationCalls

MAX_ID = 63


@dataclass(frozen=True)
class MlflowVersion:
    """One model version of MLflow. `location` is the URI of its folder."""

    model: str
    version: int
    location: str
    run: str
    description: str
    metrics: dict[str, float]
    tags: dict[str, str]
    aliases: tuple[str, ...] = ()


@dataclass
class MlflowImport:
    """MLflow's `name/version` → version here; `skipped` has a sentence for each other one."""

    versions: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


class MlflowCalls(CatalogCalls, RegistrationCalls):
    """Imports models from MLflow."""

    async def import_mlflow(
        self, database: Path, *, feature_set: str, artifacts: Path | None = None, **options: Any
    ) -> MlflowImport:
        """Registers every ONNX model version of an MLflow registry, with metrics, tags and aliases.

        `artifacts` is the folder that MLflow's server keeps as `mlflow-artifacts:/`. `options` are those of
        `register`, such as `kind` and `output`; they count for all models. A version that cannot be imported
        is skipped, and the others go on.
        """
        done = MlflowImport()
        for found in await asyncio.to_thread(lambda: list(read_versions(database))):
            key = f"{found.model}/{found.version}"
            try:
                file = await asyncio.to_thread(onnx_file, found.location, artifacts)
                version = await self.register(
                    model_id(found.model),
                    file,
                    feature_set=feature_set,
                    metrics=found.metrics,
                    tags={**found.tags, "mlflow_version": key, "mlflow_run": found.run},
                    description=found.description,
                    **options,
                )
                for alias in found.aliases:
                    await self.set_alias(model_id(alias), version.name, reason=f"imported from MLflow {key}")
            except (FlywheelError, InvalidModelError, SignatureError, OSError, ValueError) as error:
                done.skipped[key] = str(error)
            else:
                done.versions[key] = version.name
        return done


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
