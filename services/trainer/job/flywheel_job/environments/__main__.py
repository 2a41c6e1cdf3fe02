"""`python -m flywheel_job.environments DRIVER SPEC_URI`: runs a driver in the environment of its job.

The process becomes the driver. If the environment cannot be made, it writes the outcome of a failure instead.
"""

from __future__ import annotations

import os
import shlex
import sys

from flywheel_common.errors import FlywheelError
from flywheel_job import objects
from flywheel_job.environments.folder import key_of, run_instead
from flywheel_job.environments.requirements import digest_of, provided, read_spec, requirements_of
from flywheel_job.launch import REQUIREMENTS_VARIABLE, WORKER_PYTHON_VARIABLE
from flywheel_job.outcome import Outcome

WORKER = "flywheel_job.environments.worker"


def main(driver: str, spec_uri: str) -> int:
    """Replace this process by the driver; returns the exit status if that is not possible."""
    store = objects.open_store()
    spec = read_spec(store, spec_uri)
    try:
        requirements = requirements_of(spec, store)
        environment = provided(requirements)
    except FlywheelError as error:
        sys.stderr.write(f"{error.reason}: {error.message}\n")
        objects.write(store, spec.failure_uri or spec.outcome_uri, Outcome.failed(error).to_json())
        return 1
    digest = digest_of(requirements)
    worker = (sys.executable, "-m", WORKER, key_of(requirements), digest, spec_uri)
    os.environ[WORKER_PYTHON_VARIABLE] = shlex.join(worker)
    os.environ[REQUIREMENTS_VARIABLE] = digest
    sys.stdout.flush()
    return run_instead(environment, "-m", driver, spec_uri)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
