"""Models that runs log and register: version, aliases, lineage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import flywheel as fw
from flywheel_common.signature import FLOAT32, InputSpec, OutputKind, OutputSpec, Signature, TensorSpec
from flywheel_common.signature_messages import signature_from_message
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_protos.types.v1 import value_pb2
from flywheel_registry.fakes.store import MemoryStore
from tests.support.builders.onnx_models import constant_half
from tests.support.peers.registry import serving_features
from tests.support.servers.registry import running_memory_registry
from tests.support.servers.restarted_trainer import RestartedTrainer

SET = "projects/default/featureSets/flights"


@pytest.fixture
async def there() -> AsyncIterator[fw.Client]:
    """A client of a registry and of a feature service with the feature set."""
    async with (
        running_memory_registry(MemoryStore()) as stub,
        serving_features() as features,
        fw.Client(registry=stub.address, feature=features.address) as opened,
    ):
        features.sets[SET] = [value_pb2.Field(name="view__a", data_type="DATA_TYPE_FLOAT64")]
        yield opened


async def test_a_run_registers_the_model_that_it_logs(
    there: fw.Client, trainer: RestartedTrainer, tmp_path: Path
) -> None:
    addresses = {service: there._addresses[service] for service in ("registry", "feature")}
    (tmp_path / "half.onnx").write_bytes(constant_half())

    def log() -> tuple[str, str, str]:
        with fw.run("late", address=trainer.address, spool=tmp_path, system_metrics=False) as run:
            options = {"feature_set": "flights", "metrics": {"auc": 0.75}, **addresses}
            first = run.log_model(constant_half(), register="half", aliases=["best", "newest"], **options)
            second = run.log_model(tmp_path / "half.onnx", name="again", register="half", **options)
            assert "" == run.log_model(constant_half(), name="third")
        return run.name, first, second

    run, first, second = await asyncio.to_thread(log)
    assert [f"projects/default/models/half/versions/{n}" for n in (1, 2)] == [first, second]
    version = await there.version_of_alias("half", "best")
    assert (first, run, {"auc": 0.75}) == (version.name, version.training_run, dict(version.metrics))
    assert model_pb2.ARTIFACT_STATE_READY == version.artifact_state
    assert first == (await there.version_of_alias("half", "newest")).name
    made = (await there.search_versions(sources=[run])).items
    assert {first, second} == {one.name for one in made}, "lineage leads from the run to its versions"


async def test_a_logged_model_with_a_signature_needs_no_feature_set(
    there: fw.Client, trainer: RestartedTrainer, tmp_path: Path
) -> None:
    signature = Signature(
        (InputSpec("view__a", FLOAT32, (), "INPUT"),),
        (TensorSpec("INPUT", FLOAT32, (1,)),),
        OutputSpec(OutputKind.BINARY, "SCORE"),
    )
    registry = there._addresses["registry"]

    def log() -> str:
        with fw.run("late", address=trainer.address, spool=tmp_path, system_metrics=False) as run:
            with pytest.raises(ValueError, match="feature set"):
                run.log_model(constant_half(), name="bare", register="half", registry=registry)
            return run.log_model(constant_half(), signature, register="half", registry=registry)

    name = await asyncio.to_thread(log)
    found = await there.registry.GetModelVersion(registry_pb2.GetModelVersionRequest(name=name))
    assert signature == signature_from_message(found.model_version.signature)


@pytest.fixture
def trainer() -> Iterator[RestartedTrainer]:
    started = RestartedTrainer()
    started.start()
    yield started
    started.close()
