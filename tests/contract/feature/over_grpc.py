"""Ports of the feature service implemented by its RPCs, so that a port's suite asserts the same law through the edge."""

from __future__ import annotations

import pytest


def no_rpc(why: str, *real: str) -> pytest.MarkDecorator:
    """Marks a law that uses what no RPC reaches: it is held over memory and the real ones (PostgreSQL unless told) alone."""
    unreachable = pytest.param("grpc", marks=pytest.mark.skip(reason=f"no RPC: {why}"))
    kinds = ["memory", *(real or ("postgres",)), unreachable]
    return pytest.mark.parametrize("backing", kinds, indirect=True)
