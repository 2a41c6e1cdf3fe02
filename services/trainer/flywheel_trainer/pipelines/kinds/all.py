"""The registry of step kinds."""

from __future__ import annotations

from flywheel_common.storage.objects import ObjectStore
from flywheel_trainer.jobs.ports import Weights
from flywheel_trainer.jobs.use_cases import Jobs
from flywheel_trainer.pipelines.kinds.champion import ChampionStep
from flywheel_trainer.pipelines.kinds.compare import CompareStep
from flywheel_trainer.pipelines.kinds.job import JobStep, ParseJob, StepJobs
from flywheel_trainer.pipelines.kinds.register import RegisterStep
from flywheel_trainer.pipelines.kinds.release import ReleaseStep, RolloutStep
from flywheel_trainer.pipelines.kinds.select import ApprovalStep, SelectStep
from flywheel_trainer.pipelines.kinds.training_set import TrainingSetStep
from flywheel_trainer.pipelines.ports import FeaturePeer, RegistryPeer
from flywheel_trainer.pipelines.run_report import RunReports
from flywheel_trainer.pipelines.step_kind import StepKinds
from flywheel_trainer.runs.use_cases import Runs


def step_kinds(
    *,
    feature: FeaturePeer,
    registry: RegistryPeer,
    weights: Weights,
    jobs: Jobs,
    runs: Runs,
    objects: ObjectStore,
    parse_job: ParseJob,
) -> StepKinds:
    """The kinds by the name of their field in the oneof `GraphStep.kind`."""
    reports, step_jobs = RunReports(runs, objects), StepJobs(jobs, runs)
    return {
        "training_set": TrainingSetStep(feature),
        "job": JobStep(step_jobs, parse_job),
        "champion": ChampionStep(registry, weights),
        "compare": CompareStep(registry, reports, step_jobs),
        "register": RegisterStep(feature, registry, reports),
        "release": ReleaseStep(feature, registry, reports),
        "rollout": RolloutStep(registry),
        "select": SelectStep(),
        "approval": ApprovalStep(),
    }
