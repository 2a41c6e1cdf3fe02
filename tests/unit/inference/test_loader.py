"""Loading of a model: its download, and golden rows with the output in another shape than its graph."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flywheel_common.scoring.errors import WrongShape
from flywheel_common.scoring.output_values import output_values
from flywheel_common.signature import OutputKind, OutputSpec
from flywheel_inference.encoding.release_messages import release_spec
from flywheel_inference.fakes.model_holds import MemoryModelHolds, SharedHolds
from flywheel_inference.fakes.model_server import MemoryModelServer
from flywheel_inference.fakes.saved_state import MemoryState
from flywheel_inference.models.errors import DigestMismatch, ModelRefused, UnknownSegmentKey
from flywheel_inference.models.loader import ReleaseLoader
from flywheel_inference.models.model_file import ModelFile
from flywheel_inference.models.replica import Replica
from flywheel_inference.models.replicas import Replicas
from flywheel_inference.releases.release import FeatureSetContract
from flywheel_inference.store.disk.state_folder import StateFolder
from tests.support.builders.inference import run_onnx
from tests.support.builders.kinds import KINDS
from tests.support.peers.inference import RegistryServicer, kind_release


class Strict(MemoryModelServer):
    """Refuses a config whose output has another shape than `graph`, as Triton's ONNX Runtime backend does."""

    def __init__(self, graph: list[int]) -> None:
        super().__init__(run_onnx)
        self._graph = graph
        self.tried: list[list[int]] = []

    async def load(
        self, name: str, config: str, files: Mapping[str, bytes], model: ModelFile, timeout: float
    ) -> None:
        (output,) = json.loads(config)["output"]
        self.tried.append([] if "reshape" in output else output["dims"])
        if self.tried[-1] != self._graph:
            raise ModelRefused("the model expects another shape")
        await super().load(name, config, files, model, timeout)


class Peers:
    """An artifact source and the contracts of feature sets."""

    def __init__(self, registry: RegistryServicer) -> None:
        self._registry = registry

    async def download(self, model_version: str, artifact: Any, timeout: float) -> AsyncGenerator[bytes]:
        yield self._registry.artifacts[model_version, artifact.name]

    async def contract(self, feature_set: str, timeout: float = 5.0) -> FeatureSetContract:
        return FeatureSetContract(feature_set, (), ())


class Halves(Peers):
    """Sends the first half of a file, and the second one when `rest` is set."""

    def __init__(self, registry: RegistryServicer) -> None:
        super().__init__(registry)
        self.halved = asyncio.Event()
        self.rest = asyncio.Event()

    async def download(self, model_version: str, artifact: Any, timeout: float) -> AsyncGenerator[bytes]:
        content = self._registry.artifacts[model_version, artifact.name]
        yield content[: len(content) // 2]
        self.halved.set()
        await self.rest.wait()
        yield self._registry.artifacts[model_version, artifact.name][len(content) // 2 :]


def loader(models: Strict, registry: RegistryServicer, peers: Any = None, saved: Any = None) -> ReleaseLoader:
    peers = peers or Peers(registry)
    holds = MemoryModelHolds("gateway", SharedHolds())
    replicas = Replicas([Replica("memory", models, holds, backend="onnxruntime")])
    return ReleaseLoader(peers, peers, saved or MemoryState(), replicas)


@pytest.mark.parametrize(
    ("kind", "graph", "tried"),
    [
        ("regression", [1], [[], [1]]),
        ("regression", [], [[]]),
        ("binary", [2], [[2]]),
        ("multiclass", [3], [[3]]),
    ],
)
async def test_the_shape_of_the_graph_is_found(kind: str, graph: list[int], tried: list[list[int]]) -> None:
    registry, models = RegistryServicer(), Strict(graph)
    spec = release_spec(kind_release(registry, 1, KINDS[kind]()), "d")
    await loader(models, registry).load(spec)
    assert models.tried == tried
    assert await models.is_loaded(spec.triton_model, 1.0)


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_download_that_does_not_end_well_leaves_no_file(tmp_path: Path, cancelled: bool) -> None:
    registry, models = RegistryServicer(), Strict([2])
    spec = release_spec(kind_release(registry, 1, KINDS["binary"]()), "d")
    peers = Halves(registry)
    with closing(StateFolder(tmp_path)) as folder:
        task = asyncio.create_task(loader(models, registry, peers, folder).load(spec))
        await asyncio.wait_for(peers.halved.wait(), 10)
        assert 1 == len(list((tmp_path / "artifacts").iterdir()))
        if cancelled:
            task.cancel()
        else:
            registry.artifacts[spec.model_version, "model.onnx"] += b"changed"
            peers.rest.set()
        with pytest.raises(asyncio.CancelledError if cancelled else DigestMismatch):
            await task
        assert [] == list((tmp_path / "artifacts").iterdir())


async def test_a_model_that_is_refused_in_every_shape_is_not_loaded() -> None:
    registry, models = RegistryServicer(), Strict([7])
    spec = release_spec(kind_release(registry, 1, KINDS["binary"]()), "d")
    with pytest.raises(ModelRefused):
        await loader(models, registry).load(spec)
    assert models.tried == [[2], [1], []]


@pytest.mark.parametrize(
    ("output", "shape", "expected"),
    [
        (OutputSpec(), (3,), [[0], [1], [2]]),
        (OutputSpec(), (3, 1), [[0], [1], [2]]),
        (OutputSpec(), (3, 2), [[1], [3], [5]]),
        (OutputSpec(OutputKind.REGRESSION), (3,), [[0], [1], [2]]),
        (OutputSpec(OutputKind.MULTICLASS, class_names=("a", "b")), (3, 2), [[0, 1], [2, 3], [4, 5]]),
        (OutputSpec(OutputKind.VECTOR, size=2), (3, 2), [[0, 1], [2, 3], [4, 5]]),
    ],
)
def test_the_shapes_of_a_kind_become_a_matrix(
    output: OutputSpec, shape: tuple[int, ...], expected: list[list[int]]
) -> None:
    tensor = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    assert output_values(output, tensor, 3).tolist() == expected


@pytest.mark.parametrize(
    ("output", "tensor"),
    [
        (OutputSpec(), np.zeros((2, 1))),
        (OutputSpec(), np.zeros((3, 3))),
        (OutputSpec(), np.zeros((3, 1), np.int64)),
        (OutputSpec(), np.zeros(())),
        (OutputSpec(OutputKind.REGRESSION), np.zeros((3, 2))),
        (OutputSpec(OutputKind.VECTOR, size=1), np.zeros(3)),
        (OutputSpec(OutputKind.MULTICLASS, class_names=("a", "b")), np.zeros((3, 1))),
    ],
)
def test_any_other_output_is_refused(output: OutputSpec, tensor: Any) -> None:
    with pytest.raises(WrongShape, match=r"\[3, "):
        output_values(output, tensor, 3)


async def test_a_segment_key_that_callers_do_not_send_is_refused() -> None:
    registry, models = RegistryServicer(), Strict([1])
    spec = release_spec(kind_release(registry, 1, KINDS["binary"](), segment_keys=["gate"]), "d")
    with pytest.raises(UnknownSegmentKey, match="gate"):
        await loader(models, registry).load(spec)
    assert models.tried == []
