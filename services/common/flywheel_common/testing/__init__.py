"""Shipped fakes and fault tools for the tests of every service."""

from flywheel_common.clock import ManualClock
from flywheel_common.ids import SequentialIds
from flywheel_common.objects import MemoryObjectStore
from flywheel_common.testing.eventually import eventually
from flywheel_common.testing.fault_proxy import FaultProxy
from flywheel_common.testing.ports import free_port

__all__ = ["FaultProxy", "ManualClock", "MemoryObjectStore", "SequentialIds", "eventually", "free_port"]
