"""The programs of docs/guides/models.md, and a registry that checks the files that they register."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import flywheel as fw
from flywheel_common.signature import FLOAT64
from flywheel_protos.types.v1 import value_pb2
from flywheel_registry.artifacts.graph import Feature
from flywheel_registry.fakes.checks import MemoryFeatureSets
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.server import wire
from flywheel_registry.store.onnxruntime.graphs import OnnxGraphs
from tests.support.peers.registry import FakeFeatures, serving_features
from tests.support.servers.registry import NO_TICKS, memory_ports, registry_settings, running

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "models.md"
TOOLS = ("scikit-learn", "XGBoost", "LightGBM", "torch")
SET = "projects/default/featureSets/flights"


def programs() -> dict[str, str]:
    """Return heading → the program below it."""
    return dict(re.findall(r"^## (.*?)\n\n```python\n(.*?)```", GUIDE.read_text(), re.MULTILINE | re.DOTALL))


def unregistered(tool: str) -> str:
    """Return the program of a tool without its last statement, which registers the file that it writes."""
    tree = ast.parse(programs()[tool])
    last = ast.unparse(tree.body.pop())
    if "client.register" not in last:
        raise AssertionError(f"the last statement of {tool} does not register: {last}")
    return ast.unparse(tree)


async def run(program: str, names: dict[str, Any]) -> None:
    """Run a program that may await at its top level; `names` are its variables, before and after."""
    code = compile(program, "guide", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporters
        result = eval(code, names)
        if inspect.isawaitable(result):
            await result


@asynccontextmanager
async def guide_client(features: Sequence[str]) -> AsyncIterator[tuple[fw.Client, FakeFeatures]]:
    """Yield a client of a registry in memory, and a feature service with these numbers as set `flights`."""
    async with serving_features() as fake:
        fake.sets[SET] = [value_pb2.Field(name=name, data_type="DATA_TYPE_FLOAT64") for name in features]
        ports, clock = memory_ports(MemoryStore())
        ports = replace(
            ports,
            graphs=OnnxGraphs(ports.objects, memory_bytes=8 << 30, seconds=60.0),
            features=MemoryFeatureSets(every={name: Feature(FLOAT64) for name in features}),
        )
        async with (
            running(wire(registry_settings(**NO_TICKS), clock, ports)) as stub,
            fw.Client(registry=stub.address, feature=fake.address) as opened,
        ):
            yield opened, fake
