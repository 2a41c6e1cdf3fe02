"""The launch specification of a TUNE job, written by the trainer and read by the driver."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Self

from flywheel_job.launch import LaunchSpec, Segment, TrialGate
from flywheel_job.tuning.messages import settings_from_json, settings_to_json
from flywheel_job.tuning.settings import Population, TuneSettings
from flywheel_job.tuning.trial import Trial


@dataclass(frozen=True)
class TuneLaunch:
    """What every trial trains, and how trials are chosen."""

    base: LaunchSpec
    settings: TuneSettings

    def to_json(self) -> bytes:
        fields = {"base": asdict(self.base), "settings": settings_to_json(self.settings)}
        return json.dumps(fields, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        fields = json.loads(data)
        base = LaunchSpec.from_json(json.dumps(fields["base"]).encode())
        return cls(base, settings_from_json(fields["settings"]))

    def trial(
        self, trial: Trial, *, until_step: int, checkpoints: str, initial: str, export: bool, gate: str
    ) -> LaunchSpec:
        """What one worker runs: a trial, or a segment of it up to `until_step`.

        `checkpoints` and `initial` are folders below that of the job's checkpoints.
        """
        base, number = self.base, trial.number
        folder = base.outcome_uri.rpartition("/")[0]
        stopped_early = self.settings.early_stopping is not None
        return replace(
            base,
            run=trial_run(base.run, number),
            params={**base.params, **trial.params},
            seed=int(trial.params["seed"]) if isinstance(trial.params.get("seed"), int) else base.seed,
            outcome_uri=f"{folder}/trials/{number}/outcome.json",
            failure_uri="",
            checkpoint_uri=f"{base.checkpoint_uri}/{checkpoints}",
            initial_checkpoint_uri=f"{base.checkpoint_uri}/{initial}" if initial else "",
            schedule=(Segment(until_step),) if until_step else (),
            check="",
            export=base.export if export else "",
            log_uri="",
            gate=TrialGate(gate, number, self.settings.objectives[0].metric) if stopped_early else None,
        )

    @property
    def is_population_based(self) -> bool:
        return isinstance(self.settings.algorithm, Population)


def trial_run(job_run: str, number: int) -> str:
    """The run of a trial, below the name of the run of its job."""
    return f"{job_run}-{number}"
