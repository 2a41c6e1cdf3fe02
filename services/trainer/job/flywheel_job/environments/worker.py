"""`python -m flywheel_job.environments.worker KEY DIGEST SPEC_URI ARGUMENTS…`: the Python of a job's workers.

Ray starts it in place of its own interpreter, on any machine of the cluster, which may not have the
environment yet. If it has, nothing is imported that costs time.
"""

from __future__ import annotations

import os
import sys

from flywheel_job.environments.folder import Environment, environments_folder, existing, run_instead
from flywheel_job.launch import REQUIREMENTS_VARIABLE


def main(key: str, digest: str, spec_uri: str, *arguments: str) -> None:
    """Replace this process by the Python of the environment."""
    environment = existing(environments_folder(), key) or _provided(spec_uri)
    os.environ[REQUIREMENTS_VARIABLE] = digest
    run_instead(environment, *arguments)


def _provided(spec_uri: str) -> Environment:
    from flywheel_job import objects
    from flywheel_job.environments.requirements import provided, read_spec, requirements_of

    store = objects.open_store()
    return provided(requirements_of(read_spec(store, spec_uri), store))


if __name__ == "__main__":
    main(*sys.argv[1:])
