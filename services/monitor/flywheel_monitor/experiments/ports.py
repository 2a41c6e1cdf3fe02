"""The ports of experiments."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from flywheel_common.paging import Page
from flywheel_monitor.experiments.experiment import Declaration, Experiment, ExperimentVerdict
from flywheel_monitor.experiments.tally import Subject, SubjectEvent, Tally
from flywheel_monitor.models.names import ExperimentName


class Experiments(Protocol):
    """Experiments and their tallies."""

    async def add_experiment(self, name: ExperimentName, declaration: Declaration, by: str) -> Experiment:
        """A running experiment, which counts predictions that arrive from now on. The model is created if it
        is new. Raises ExperimentExists, TooManyExperiments (more than MAX_RUNNING)."""
        ...

    async def experiment(self, name: ExperimentName) -> tuple[Experiment, Tally]:
        """Raises UnknownExperiment."""
        ...

    async def experiments(self, model: str, size: int, token: str, treatment: str = "") -> Page[Experiment]:
        """The experiments of a model, newest first; with `treatment` those of this release. Raises
        InvalidPageToken."""
        ...

    async def conclude_experiment(
        self, name: ExperimentName, verdict: ExperimentVerdict, reason: str, by: str
    ) -> Experiment:
        """Raises UnknownExperiment, ExperimentConcluded."""
        ...

    async def running_experiments(self, model: str) -> list[tuple[Experiment, Tally]]:
        """The running experiments of a model, oldest first."""
        ...


class ExperimentCounts(Experiments, Protocol):
    """Events that wait to be counted in experiments. Ingestion adds, in its transaction, every new served
    prediction of a model with a running experiment, and every outcome of such a prediction whatever comes
    first: the new label or value, or the difference of a corrected label. Each is taken once."""

    async def take_events(self, limit: int) -> list[SubjectEvent]:
        """Remove the oldest events and return them, predictions before their outcomes."""
        ...

    async def lock_experiments(self, model: str) -> list[tuple[Experiment, Tally]]:
        """As `running_experiments`; until the transaction ends, no other one changes them."""
        ...

    async def subjects(self, experiment_id: int, subjects: Collection[str]) -> dict[str, Subject]:
        """What is known of these subjects."""
        ...

    async def store_tally(self, experiment_id: int, tally: Tally, subjects: Mapping[str, Subject]) -> None:
        """Replace the tally and these subjects."""
        ...

    async def forget_subjects(self, limit: int) -> int:
        """Delete subjects of concluded experiments, at most `limit`; returns how many. Tallies stay."""
        ...


def of_model(events: Sequence[SubjectEvent]) -> dict[str, list[SubjectEvent]]:
    """The events by model, in order."""
    found: dict[str, list[SubjectEvent]] = {}
    for event in events:
        found.setdefault(event.model, []).append(event)
    return found
