"""The addresses in the files of a launch that its attempt may not use."""

from __future__ import annotations

import re

from flywheel_common.granted.access import ObjectMethod, ObjectRequest
from flywheel_common.granted.errors import ForeignObject
from flywheel_trainer.jobs.job import JobName
from flywheel_trainer.jobs.kinds import Launch
from flywheel_trainer.jobs.supervision import access_of_attempt

_ADDRESS = re.compile(rb's3://[^"\\\s]+')


def refused_addresses(name: JobName, attempt: int, launch: Launch, bucket: str = "b") -> list[str]:
    """The addresses that the object store would refuse to read or to list, in order; there must be one that
    it would not refuse."""
    access = access_of_attempt(bucket, name, attempt, launch)
    found = {address.decode() for file in launch.files.values() for address in _ADDRESS.findall(file)}
    found.discard(access.artifacts)  # only written, each object under its digest
    refused = []
    for uri in sorted(found):
        method = ObjectMethod.LIST if uri.endswith("/") else ObjectMethod.GET
        try:
            access.check(ObjectRequest(method, uri))
        except ForeignObject:
            refused.append(uri)
    assert len(refused) < len(found), "the files name no address"
    return refused
