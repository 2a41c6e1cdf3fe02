"""The methods of TrainerService about trials."""

from __future__ import annotations

from typing import Any

from flywheel_common.grpc.attempt_tokens import current_attempt
from flywheel_common.paging import page_size
from flywheel_job.tuning.messages import trial_from_proto, trial_to_proto
from flywheel_job.tuning.trial import Trial
from flywheel_protos.trainer.v1 import tuning_pb2 as pb
from flywheel_trainer.jobs.job import Job, JobName
from flywheel_trainer.trials.errors import InvalidTrial
from flywheel_trainer.trials.trial_name import TrialName, run_of
from flywheel_trainer.trials.use_cases import Trials


class TrialMethods:
    """Mixin of the servicer."""

    _trials: Trials

    async def ListTrials(self, request: pb.ListTrialsRequest, context: Any) -> pb.ListTrialsResponse:
        size = page_size(request.page_size, default=100, maximum=1000)
        name = JobName.parse(request.parent)
        job, page = await self._trials.list(name, size, request.page_token, current_attempt())
        return pb.ListTrialsResponse(
            trials=[_to_proto(job, one) for one in page.items], next_page_token=page.next_page_token
        )

    async def ListBestTrials(
        self, request: pb.ListBestTrialsRequest, context: Any
    ) -> pb.ListBestTrialsResponse:
        job, best = await self._trials.best(JobName.parse(request.parent))
        return pb.ListBestTrialsResponse(trials=[_to_proto(job, one) for one in best])

    async def RecordTrial(self, request: pb.RecordTrialRequest, context: Any) -> pb.RecordTrialResponse:
        try:
            trial = trial_from_proto(request.trial)
        except ValueError as error:
            raise InvalidTrial(f"The trial is not valid: {error}.", field="trial") from error
        name = JobName.parse(request.parent)
        job, stored = await self._trials.record(name, trial, request.outcome_json, current_attempt())
        return pb.RecordTrialResponse(trial=_to_proto(job, stored))

    async def RegisterTrial(self, request: pb.RegisterTrialRequest, context: Any) -> pb.RegisterTrialResponse:
        name = TrialName.parse(request.trial)
        version = await self._trials.register(name, request.model, request.request_id)
        return pb.RegisterTrialResponse(model_version=version)


def _to_proto(job: Job, trial: Trial) -> Any:
    return trial_to_proto(trial, str(job.name), str(run_of(job.run, trial.number)))
