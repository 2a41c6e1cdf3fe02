"""Models, versions, releases, gates and rollouts."""

from flywheel_common.process.grpc_poller import use_one_poller

use_one_poller()
