"""The verdict that decides a rollout."""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_monitor.experiments.experiment import Experiment, ExperimentVerdict
from flywheel_monitor.experiments.ports import Experiments
from flywheel_monitor.experiments.report import judge


@dataclass(frozen=True)
class RolloutVerdict:
    """The verdict of the experiment that decides a rollout, and why."""

    experiment: Experiment
    verdict: ExperimentVerdict
    reason: str


async def rollout_verdict(
    records: Experiments, model: str, rollout: str, champion: str, challenger: str, generation: int
) -> RolloutVerdict | None:
    """The verdict of the oldest running experiment between the two releases of a rollout in a step (0: any),
    None without one. A later experiment cannot replace the declared one while it runs."""
    for experiment, tally in await records.running_experiments(model):
        arms = experiment.declaration.arms
        of_step = experiment.declaration.generation in (0, generation) or not generation
        if of_step and [(a.source, a.release) for a in arms] == [(rollout, champion), (rollout, challenger)]:
            report = judge(experiment.declaration, tally)
            return RolloutVerdict(experiment, report.verdict, "; ".join(report.reasons))
    return None
