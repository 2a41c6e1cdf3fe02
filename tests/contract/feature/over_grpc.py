"""Ports of the feature service implemented by its RPCs, so that a port's suite asserts the same law through the edge."""

from __future__ import annotations

import pytest


def no_rpc(why: str, real: str = "postgres") -> pytest.MarkDecorator:
    """Marks a law that uses what no RPC reaches: it is held over memory and the real store alone."""
    unreachable = pytest.param("grpc", marks=pytest.mark.skip(reason=f"no RPC: {why}"))
    return pytest.mark.parametrize("backing", ["memory", real, unreachable], indirect=True)
