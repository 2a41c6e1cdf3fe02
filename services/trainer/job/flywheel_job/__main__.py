"""Driver of a job, which Ray starts as `python -m flywheel_job SPEC_URI`."""

from __future__ import annotations

import sys

from pyarrow import fs

from flywheel_job import objects
from flywheel_job.driver import run
from flywheel_job.launch import LaunchSpec


def main(spec_uri: str) -> int:
    """Run the job of this specification and return the exit status."""
    store: fs.FileSystem = objects.open_store()
    return run(LaunchSpec.from_json(objects.read(store, spec_uri)), store)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
