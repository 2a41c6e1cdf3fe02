"""The methods of MonitorService about experiments."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from flywheel_common.context import actor
from flywheel_common.paging import page_size
from flywheel_common.postgres.transactions import Store
from flywheel_monitor.alerts.errors import ReasonRequired
from flywheel_monitor.api.convert_experiments import (
    declaration_from_proto,
    experiment_to_proto,
    report_to_proto,
)
from flywheel_monitor.experiments.errors import VerdictRequired
from flywheel_monitor.experiments.experiment import ExperimentVerdict
from flywheel_monitor.experiments.ports import Experiments
from flywheel_monitor.experiments.report import judge
from flywheel_monitor.models.names import ExperimentName, ModelName, ReleaseName
from flywheel_protos.monitor.v1 import experiment_pb2 as pb


class ExperimentMethods:
    """Part of the servicer."""

    _store: Store[Any]
    _mutate: Callable[..., Awaitable[Any]]

    async def CreateExperiment(
        self, request: pb.CreateExperimentRequest, context: Any
    ) -> pb.CreateExperimentResponse:
        name = ExperimentName.parse(request.experiment.name)
        declaration = declaration_from_proto(request.experiment).checked(name)

        async def effect(records: Experiments) -> pb.CreateExperimentResponse:
            added = await records.add_experiment(name, declaration, actor())
            return pb.CreateExperimentResponse(experiment=experiment_to_proto(added))

        created: pb.CreateExperimentResponse = await self._mutate(
            "CreateExperiment", request, pb.CreateExperimentResponse, effect
        )
        return created

    async def GetExperiment(self, request: pb.GetExperimentRequest, context: Any) -> pb.GetExperimentResponse:
        name = ExperimentName.parse(request.name)
        async with self._store.reading() as records:
            found, tally = await records.experiment(name)
        report = report_to_proto(found, judge(found.declaration, tally))
        return pb.GetExperimentResponse(experiment=experiment_to_proto(found), report=report)

    async def ListExperiments(
        self, request: pb.ListExperimentsRequest, context: Any
    ) -> pb.ListExperimentsResponse:
        model, size = str(ModelName.parse(request.parent)), page_size(request.page_size)
        treatment = str(ReleaseName.parse(request.treatment_release)) if request.treatment_release else ""
        async with self._store.reading() as records:
            page = await records.experiments(model, size, request.page_token, treatment)
        return pb.ListExperimentsResponse(
            experiments=map(experiment_to_proto, page.items), next_page_token=page.next_page_token
        )

    async def ConcludeExperiment(
        self, request: pb.ConcludeExperimentRequest, context: Any
    ) -> pb.ConcludeExperimentResponse:
        name = ExperimentName.parse(request.name)
        if int(request.verdict) not in set(ExperimentVerdict) or not request.verdict:
            raise VerdictRequired("verdict is not set or unknown.", field="verdict")
        if not request.reason.strip():
            raise ReasonRequired("reason is empty: say why the experiment ends.", field="reason")
        verdict = ExperimentVerdict(int(request.verdict))

        async def effect(records: Experiments) -> pb.ConcludeExperimentResponse:
            concluded = await records.conclude_experiment(name, verdict, request.reason, actor())
            return pb.ConcludeExperimentResponse(experiment=experiment_to_proto(concluded))

        concluded: pb.ConcludeExperimentResponse = await self._mutate(
            "ConcludeExperiment", request, pb.ConcludeExperimentResponse, effect
        )
        return concluded
