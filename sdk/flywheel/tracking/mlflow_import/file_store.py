"""The file store of MLflow: a folder per experiment and run, a file per param, metric and tag."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flywheel.tracking.mlflow_import.source import (
    DamagedRun,
    SourcePoint,
    SourceRun,
    files_below,
    local_artifacts,
    local_path,
)

_META = "meta.yaml"
_STATUS = {"1": "RUNNING", "2": "SCHEDULED", "3": "FINISHED", "4": "FAILED", "5": "KILLED"}


class FileStore:
    """`Source` of a folder such as `mlruns`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not any(folder.glob(f"*/{_META}")):
            raise ValueError(f"{folder} is no tracking folder of MLflow: it has no */{_META}.")
        self._folders: dict[str, Path] = {}

    def runs(self) -> Iterator[SourceRun]:
        for experiment in sorted(self._folder.glob(f"*/{_META}")):
            about = read_meta(experiment)
            for meta in sorted(experiment.parent.glob(f"*/{_META}")):
                found = read_meta(meta)
                if "run_id" not in found and "run_uuid" not in found:
                    # Folders of traces, data sets and logged models have another meta.yaml.
                    continue
                yield self._run(meta.parent, found, about.get("name", ""))

    def _run(self, folder: Path, meta: Mapping[str, str], experiment: str) -> SourceRun:
        uuid = meta.get("run_id") or meta["run_uuid"]
        self._folders[uuid] = folder
        tags = _texts(folder / "tags")
        here, uri = folder / "artifacts", meta.get("artifact_uri", "")
        path = here if here.is_dir() else local_path(uri)
        end = meta.get("end_time", "null")
        return SourceRun(
            uuid,
            experiment,
            meta.get("run_name") or tags.get("mlflow.runName", ""),
            _STATUS.get(meta.get("status", ""), meta.get("status", "")),
            meta.get("lifecycle_stage") == "deleted",
            int(meta["start_time"]),
            None if end in ("null", "") else int(end),
            _texts(folder / "params"),
            tags,
            path,
            uri,
        )

    def metrics(self, run: SourceRun) -> Iterator[tuple[str, Sequence[SourcePoint]]]:
        folder = self._folders[run.uuid] / "metrics"
        for file in files_below(folder):
            points = []
            for number, line in enumerate(file.read_text().splitlines(), 1):
                parts = line.split()
                try:
                    # Files of old versions have no steps.
                    step = int(parts[2]) if len(parts) > 2 else 0
                    points.append(SourcePoint(step, float(parts[1]), int(parts[0])))
                except (ValueError, IndexError) as error:
                    raise DamagedRun(f"{file}:{number} is no point of a metric: {line[:80]!r}.") from error
            yield file.relative_to(folder).as_posix(), points

    def artifacts(self, run: SourceRun) -> Iterator[tuple[str, Path]]:
        return local_artifacts(run)

    def close(self) -> None:
        """There is nothing to close."""


def read_meta(file: Path) -> dict[str, str]:
    """The scalars at the top level of a meta.yaml, which MLflow writes with a line for each; nested values
    are left out."""
    found: dict[str, str] = {}
    continued = ""
    for line in file.read_text().splitlines():
        if line[:1] in (" ", "-", "#", "") and continued:
            # A long or quoted scalar goes on in the next line.
            found[continued] += f" {line.strip()}"
            continue
        key, separator, value = line.partition(":")
        continued = ""
        if separator and not line.startswith((" ", "-")):
            found[key.strip()] = value.strip()
            continued = key.strip() if value.strip() else ""
    return {key: _scalar(value) for key, value in found.items()}


def _scalar(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            # A double-quoted scalar of YAML has the escapes of JSON, and a few more.
            return str(json.loads(text))
        except ValueError:
            return text[1:-1]
    return text


def _texts(folder: Path) -> dict[str, str]:
    # A key with slashes is in folders of its own.
    return {file.relative_to(folder).as_posix(): file.read_text() for file in files_below(folder)}
