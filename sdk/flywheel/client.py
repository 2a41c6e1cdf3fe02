"""The typed async client: one object, five services, messages in and out.

`Client` opens a channel per service; `client.feature`, `.registry`, `.trainer`, `.inference` and `.monitor` are the
generated stubs whose errors come as `FlywheelError` with a reason. What needs more than one call, or packed columns,
has a method of its own.
"""

from __future__ import annotations

from flywheel.feature_calls import FeatureCalls
from flywheel.model_calls import ModelCalls


class Client(FeatureCalls, ModelCalls):
    """Use as `async with Client() as client:`."""
