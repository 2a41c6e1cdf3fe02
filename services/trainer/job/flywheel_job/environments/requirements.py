"""The environment of a job, by its launch specification."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from pyarrow import fs

from flywheel_job import objects
from flywheel_job.environments.folder import Environment, environments_folder, key_of, provide
from flywheel_job.environments.installing import install
from flywheel_job.errors import InvalidRequirements
from flywheel_job.launch import LaunchSpec
from flywheel_job.source.archive import unpack


def read_spec(store: fs.FileSystem, spec_uri: str) -> LaunchSpec:
    """The specification of a job, or of the trials of a TUNE job."""
    fields = json.loads(objects.read(store, spec_uri))
    return LaunchSpec.from_json(json.dumps(fields.get("base", fields)).encode())


def requirements_of(spec: LaunchSpec, store: fs.FileSystem) -> bytes:
    """The content of the requirements file. Raises InvalidSource, InvalidRequirements."""
    assert spec.source is not None
    archive = objects.read(store, spec.source.uri)
    with tempfile.TemporaryDirectory(prefix="flywheel-source-") as name:
        unpack(archive, spec.source.sha256, Path(name))
        file = Path(name) / spec.requirements
        if not file.is_file():
            raise InvalidRequirements(f"The source archive has no file {spec.requirements!r}.")
        return file.read_bytes()


def provided(requirements: bytes) -> Environment:
    """The environment with these requirements. Raises InvalidRequirements, EnvironmentsUnusable."""
    key = key_of(requirements)
    return provide(environments_folder(), key, lambda folder: install(folder, requirements))


def digest_of(requirements: bytes) -> str:
    return hashlib.sha256(requirements).hexdigest()
