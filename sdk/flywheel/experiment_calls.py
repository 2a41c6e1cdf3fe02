"""Calls about experiments on served releases: start, read, conclude."""

from __future__ import annotations

from typing import Literal

from flywheel.connection import Connection, request_id
from flywheel.experiments import Experiment
from flywheel_protos.monitor.v1 import experiment_pb2 as pb
from flywheel_protos.registry.v1 import model_pb2, registry_pb2


class ExperimentCalls(Connection):
    """Calls of the monitor about experiments. An experiment is named in full, as `Experiment.name`."""

    async def start_experiment(self, experiment: Experiment) -> pb.Experiment:
        """Starts an experiment. Its arms are those of the rollout, which must answer callers, or the releases
        of two variants of the model, or of the champion and a variant, as they are now. Raises ValueError
        when there are none."""
        model = self.path("models", experiment.model)
        control, treatment, generation = (
            await self._rollout_arms(experiment.rollout)
            if experiment.rollout
            else await self._variant_arms(model, experiment.control, experiment.treatment)
        )
        message = pb.Experiment(
            name=f"{model}/experiments/{experiment.name}",
            control=control,
            treatment=treatment,
            generation=generation,
            metrics=experiment.metrics,
            weeks=experiment.weeks,
            alpha=experiment.alpha,
        )
        request = pb.CreateExperimentRequest(experiment=message, request_id=request_id())
        created: pb.Experiment = (await self.monitor.CreateExperiment(request)).experiment
        return created

    async def experiment_report(self, name: str) -> pb.GetExperimentResponse:
        """An experiment and its report, with the verdict as it is now."""
        found: pb.GetExperimentResponse = await self.monitor.GetExperiment(pb.GetExperimentRequest(name=name))
        return found

    async def conclude_experiment(
        self, name: str, verdict: Literal["SHIP", "ROLL_BACK", "CONTINUE"], reason: str
    ) -> pb.Experiment:
        """Ends an experiment; CONTINUE: without a decision. Rollouts are concluded by conclude_rollout."""
        request = pb.ConcludeExperimentRequest(
            name=name, verdict=f"EXPERIMENT_VERDICT_{verdict}", reason=reason, request_id=request_id()
        )
        concluded: pb.Experiment = (await self.monitor.ConcludeExperiment(request)).experiment
        return concluded

    async def _rollout_arms(self, rollout: str) -> tuple[pb.ExperimentArm, pb.ExperimentArm, int]:
        found: model_pb2.Rollout = (
            await self.registry.GetRollout(registry_pb2.GetRolloutRequest(name=rollout))
        ).rollout
        percent = found.challenger_percent
        if found.state != model_pb2.ROLLOUT_STATE_CANARY or not 0 < percent < 100:
            state = model_pb2.RolloutState.Name(found.state).removeprefix("ROLLOUT_STATE_")
            raise ValueError(
                f"{rollout} is {state} at {percent:g} %: both releases must answer callers (CANARY)."
            )
        return (
            pb.ExperimentArm(source=rollout, release=found.champion_release, share=100 - percent),
            pb.ExperimentArm(source=rollout, release=found.challenger_release, share=percent),
            found.generation,
        )

    async def _variant_arms(
        self, model: str, control: str, treatment: str
    ) -> tuple[pb.ExperimentArm, pb.ExperimentArm, int]:
        request = registry_pb2.GetModelRequest(name=model)
        found = (await self.registry.GetModel(request)).model
        variants = list(found.variants)
        shares: dict[str, float] = {}
        left = 100.0
        for variant in variants:  # A variant gets its percent of the subjects that none before it has.
            shares[variant.name] = left * variant.percent / 100
            left -= shares[variant.name]
        releases = {variant.name: variant.release for variant in variants}
        arms: list[pb.ExperimentArm] = []
        for name in (control, treatment):
            if not name and arms == [] and found.production_release and left > 0:
                arms.append(pb.ExperimentArm(source=model, release=found.production_release, share=left))
                continue
            if not shares.get(name):
                known = ", ".join(n for n, share in shares.items() if share) or "none"
                raise ValueError(f"{name!r} is not a variant of {model} that answers callers: {known}.")
            arms.append(
                pb.ExperimentArm(
                    source=f"{model}/variants/{name}", release=releases[name], share=shares[name]
                )
            )
        return arms[0], arms[1], 0
