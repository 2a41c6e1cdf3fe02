"""`ExperimentCounts` in memory, and what ingestion notes for it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import replace

from flywheel_common.clock import Clock
from flywheel_common.paging import Page, cut, decode_token
from flywheel_monitor.experiments.errors import (
    ExperimentConcluded,
    ExperimentExists,
    TooManyExperiments,
    UnknownExperiment,
)
from flywheel_monitor.experiments.experiment import (
    MAX_RUNNING,
    Declaration,
    Experiment,
    ExperimentState,
    ExperimentVerdict,
)
from flywheel_monitor.experiments.metric import COUNT
from flywheel_monitor.experiments.tally import Subject, SubjectEvent, Tally
from flywheel_monitor.fakes.data import Data, StoredPrediction
from flywheel_monitor.ingest.batches import LABEL, OutcomeColumns
from flywheel_monitor.models.names import ExperimentName


class MemoryExperiments:
    _data: Data
    _clock: Clock

    async def add_experiment(self, name: ExperimentName, declaration: Declaration, by: str) -> Experiment:
        if len(await self.running_experiments(name.model_name)) >= MAX_RUNNING:
            raise TooManyExperiments(f"{name.model_name} has {MAX_RUNNING} running experiments.")
        if str(name) in self._data.experiments:
            raise ExperimentExists(f"{name} exists already.")
        self._data.model(name.model_name)
        number = len(self._data.experiments) + 1
        added = Experiment(number, str(name), declaration, self._clock.now(), by)
        self._data.experiments[added.name] = added, Tally.empty(len(declaration.metrics))
        return added

    async def experiment(self, name: ExperimentName) -> tuple[Experiment, Tally]:
        found = self._data.experiments.get(str(name))
        if found is None:
            raise UnknownExperiment(f"There is no experiment {name}.")
        return deepcopy(found)

    async def experiments(self, model: str, size: int, token: str, treatment: str = "") -> Page[Experiment]:
        query = f"{model} {treatment}".strip()
        key = decode_token(token, query=query)
        before = math.inf if key is None else int(str(key[0]))
        found = [
            e
            for e, _ in self._data.experiments.values()
            if _is_of(e, model) and e.id < before and treatment in ("", e.declaration.treatment.release)
        ]
        return cut(found[::-1][: size + 1], size, lambda e: [e.id], query=query)

    async def conclude_experiment(
        self, name: ExperimentName, verdict: ExperimentVerdict, reason: str, by: str
    ) -> Experiment:
        found, tally = await self.experiment(name)
        if found.state is ExperimentState.CONCLUDED:
            raise ExperimentConcluded(f"{name} was concluded before.")
        concluded = replace(
            found,
            state=ExperimentState.CONCLUDED,
            concluded_at=self._clock.now(),
            concluded_by=by,
            verdict=verdict,
            reason=reason,
        )
        self._data.experiments[found.name] = concluded, tally
        return concluded

    async def running_experiments(self, model: str) -> list[tuple[Experiment, Tally]]:
        return deepcopy(
            [
                (e, tally)
                for e, tally in self._data.experiments.values()
                if _is_of(e, model) and e.state is ExperimentState.RUNNING
            ]
        )

    async def take_events(self, limit: int) -> list[SubjectEvent]:
        taken = self._data.experiment_events[:limit]
        self._data.experiment_events = self._data.experiment_events[limit:]
        return list(taken)

    async def lock_experiments(self, model: str) -> list[tuple[Experiment, Tally]]:
        return await self.running_experiments(model)

    async def subjects(self, experiment_id: int, subjects: Collection[str]) -> dict[str, Subject]:
        known = self._data.subjects
        return {s: deepcopy(known[experiment_id, s]) for s in subjects if (experiment_id, s) in known}

    async def store_tally(self, experiment_id: int, tally: Tally, subjects: Mapping[str, Subject]) -> None:
        name = next(e.name for e, _ in self._data.experiments.values() if e.id == experiment_id)
        self._data.experiments[name] = self._data.experiments[name][0], deepcopy(tally)
        self._data.subjects |= {(experiment_id, s): deepcopy(known) for s, known in subjects.items()}

    async def forget_subjects(self, limit: int) -> int:
        over = {e.id for e, _ in self._data.experiments.values() if e.state is ExperimentState.CONCLUDED}
        gone = [key for key in self._data.subjects if key[0] in over][:limit]
        self._data.subjects = {k: s for k, s in self._data.subjects.items() if k not in gone}
        return len(gone)


def note_prediction(data: Data, prediction: StoredPrediction) -> None:
    """Note a served prediction that was new, with the outcomes that had arrived before it."""
    batch, row = prediction.batch, prediction.row
    cost = float(batch.costs[row])
    _note(
        data,
        prediction,
        COUNT,
        1.0,
        latency_ms=float(batch.latencies_ms[row]),
        failed=bool(batch.failed[row]),
        cost=None if math.isnan(cost) else cost,
    )
    for name, value in data.business.get((data.model(batch.key.model), prediction.id), ()):
        _note(data, prediction, name, value)
    early = data.labels.get(prediction.labelled_by)
    if early is not None:
        _note(data, prediction, LABEL, early.label.value)


def note_outcome(data: Data, batch: OutcomeColumns, row: int) -> None:
    """Note an outcome that was new."""
    prediction_id, value = batch.prediction_ids[row], float(batch.values[row])
    key = data.model(batch.model), prediction_id
    data.business[key] = [*data.business.get(key, ()), (batch.name, value)]
    prediction = data.predictions.get((batch.model, prediction_id, None))
    if prediction is not None:
        _note(data, prediction, batch.name, value)


def note_label(data: Data, key: tuple[str, str], change: float) -> None:
    """Note a new label by its value, or a corrected one by the difference."""
    prediction = data.predictions.get((*key, None))
    if prediction is not None:
        _note(data, prediction, LABEL, change)


def _note(
    data: Data,
    prediction: StoredPrediction,
    name: str,
    value: float,
    *,
    latency_ms: float = 0.0,
    failed: bool = False,
    cost: float | None = None,
) -> None:
    key = prediction.batch.key
    tested = any(
        _is_of(e, key.model) and e.state is ExperimentState.RUNNING for e, _ in data.experiments.values()
    )
    if not tested or math.isnan(value):
        return
    event = SubjectEvent(
        key.model,
        key.rollout,
        key.release,
        key.generation,
        prediction.batch.subjects[prediction.row] or prediction.id,
        prediction.time,
        prediction.arrived_at,
        name,
        value,
        latency_ms,
        failed,
        cost,
    )
    data.experiment_events = (*data.experiment_events, event)


def _is_of(experiment: Experiment, model: str) -> bool:
    return ExperimentName.parse(experiment.name).model_name == model
