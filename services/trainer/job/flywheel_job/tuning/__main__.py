"""Driver of a TUNE job, which Ray starts as `python -m flywheel_job.tuning SPEC_URI`."""

from __future__ import annotations

import sys
import traceback

from flywheel_job import objects
from flywheel_job.driver import connect, failure_of
from flywheel_job.outcome import Outcome
from flywheel_job.reporting import MetricReporter
from flywheel_job.tuning.driver import Study, conclude
from flywheel_job.tuning.launch import TuneLaunch
from flywheel_job.tuning.recording import TrainerTrials
from flywheel_job.tuning.workers import RayWorkers
from flywheel_job.worker import call


def main(spec_uri: str) -> int:
    """Run the job of this specification, write its outcome, and return the exit status."""
    store = objects.open_store()
    launch = TuneLaunch.from_json(objects.read(store, spec_uri))
    base, asks = launch.base, launch.settings.early_stopping is not None
    try:
        if base.check:
            call(base.check, base, store)
        connect(base.resources)
        trials = TrainerTrials(base, store)
        with MetricReporter(base.trainer_address, base.run) as progress:
            outcome = conclude(Study(launch, trials, RayWorkers(base.job, asks=asks), progress))
    except Exception as error:  # noqa: BLE001 - the outcome contains every failure
        traceback.print_exc()
        outcome = Outcome.failed(failure_of(error))
    objects.write(store, base.outcome_uri if outcome.succeeded else base.failure_uri, outcome.to_json())
    return 0 if outcome.succeeded else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
