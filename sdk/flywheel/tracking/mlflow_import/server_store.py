"""The runs of an MLflow server, by its REST API."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flywheel.tracking.mlflow_import.rest import MlflowServer, MlflowServerError
from flywheel.tracking.mlflow_import.source import ArtifactsElsewhere, SourcePoint, SourceRun, value_of

RUNS_PER_PAGE = 500
POINTS_PER_PAGE = 20_000
EXPERIMENTS_PER_CALL = 50


class ServerStore:
    """`Source` of a server."""

    def __init__(self, server: MlflowServer) -> None:
        self._server = server
        self._keys: dict[str, list[str]] = {}

    def runs(self) -> Iterator[SourceRun]:
        query = {"max_results": 1000, "view_type": "ACTIVE_ONLY"}
        found = self._server.pages("experiments/search", query, "experiments", by_get=False)
        experiments = {one["experiment_id"]: one["name"] for one in found}
        ids = sorted(experiments)
        for start in range(0, len(ids), EXPERIMENTS_PER_CALL):
            search = {
                "experiment_ids": ids[start : start + EXPERIMENTS_PER_CALL],
                "run_view_type": "ACTIVE_ONLY",
                "max_results": RUNS_PER_PAGE,
                "order_by": ["attributes.start_time ASC"],
            }
            for run in self._server.pages("runs/search", search, "runs", by_get=False):
                yield self._run(run, experiments)

    def _run(self, run: dict[str, Any], experiments: dict[str, str]) -> SourceRun:
        about, data = run["info"], run.get("data", {})
        tags = {tag["key"]: tag.get("value", "") for tag in data.get("tags", ())}
        uuid, end = about["run_id"], about.get("end_time")
        self._keys[uuid] = [metric["key"] for metric in data.get("metrics", ())]
        return SourceRun(
            uuid,
            experiments.get(about["experiment_id"], about["experiment_id"]),
            about.get("run_name") or tags.get("mlflow.runName", ""),
            about.get("status", ""),
            about.get("lifecycle_stage") == "deleted",
            int(about.get("start_time") or 0),
            int(end) if end else None,
            {param["key"]: param.get("value", "") for param in data.get("params", ())},
            tags,
            None,
            about.get("artifact_uri", ""),
        )

    def metrics(self, run: SourceRun) -> Iterator[tuple[str, Sequence[SourcePoint]]]:
        for key in self._keys[run.uuid]:
            query = {"run_id": run.uuid, "metric_key": key, "max_results": POINTS_PER_PAGE}
            points = self._server.pages("metrics/get-history", query, "metrics", by_get=True)
            yield key, [_point(point) for point in points]

    def artifacts(self, run: SourceRun) -> Iterator[tuple[str, Path]]:
        unreadable: list[str] = []
        try:
            for name in self._names(run.uuid, ""):
                try:
                    with self._server.file("/get-artifact", {"run_id": run.uuid, "path": name}) as path:
                        yield name, path
                except MlflowServerError as error:
                    unreadable.append(f"{name!r}: {_final(error)}")
        except MlflowServerError as error:
            # The server itself cannot read the place of the artifacts.
            unreadable.append(str(_final(error)))
        if unreadable:
            raise ArtifactsElsewhere(
                f"Artifacts at {run.artifact_uri} are not copied: {'; '.join(unreadable)}"
            )

    def _names(self, run: str, folder: str) -> Iterator[str]:
        query = {"run_id": run, **({"path": folder} if folder else {})}
        for entry in self._server.pages("artifacts/list", query, "files", by_get=True):
            path = str(entry["path"])
            if not entry.get("is_dir"):
                yield path
            elif path.startswith(f"{folder}/" if folder else "") and path != folder:
                yield from self._names(run, path)

    def close(self) -> None:
        """There is nothing to close."""


def _final(error: MlflowServerError) -> MlflowServerError:
    """The error, if the same call would be refused again. Raises it else."""
    if not 400 <= error.status < 500:
        raise error
    return error


def _point(point: dict[str, Any]) -> SourcePoint:
    return SourcePoint(int(point.get("step", 0)), value_of(point), int(point.get("timestamp", 0)))
