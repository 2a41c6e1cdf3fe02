"""Registration by `flywheel models register`, on a registry in memory and a feature set."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import flywheel as fw
from flywheel_common.signature_messages import signature_from_message
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_protos.types.v1 import value_pb2
from flywheel_registry.artifacts.graph import Feature
from flywheel_registry.fakes.checks import MemoryFeatureSets
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.server import wire
from tests.support.builders.onnx_models import constant_half
from tests.support.commands import flywheel
from tests.support.peers.registry import serving_features
from tests.support.servers.registry import NO_TICKS, memory_ports, registry_settings, running

SET = "projects/default/featureSets/flights"
VERSION = "projects/default/models/late/versions/1"


@pytest.fixture
async def there() -> AsyncIterator[fw.Client]:
    """A client of a registry and of a feature service with one text feature."""
    ports, clock = memory_ports(MemoryStore())
    known = {"view__carrier": Feature(value_pb2.DATA_TYPE_STRING)}
    ports = replace(ports, features=MemoryFeatureSets(every=known))
    async with (
        running(wire(registry_settings(**NO_TICKS), clock, ports)) as stub,
        serving_features() as features,
        fw.Client(registry=stub.address, feature=features.address) as opened,
    ):
        features.sets[SET] = [value_pb2.Field(name="view__carrier", data_type="DATA_TYPE_STRING")]
        yield opened


@pytest.fixture
def vocabularies(tmp_path: Path) -> Path:
    return vocabulary_file(tmp_path, json.dumps({"view__carrier": ["AA", "UA"]}))


def vocabulary_file(folder: Path, content: str) -> Path:
    file = folder / "vocabularies.json"
    file.write_text(content)
    return file


async def register(there: fw.Client, folder: Path, *options: str) -> Any:
    """Run `flywheel models register` with a file of one input."""
    file = folder / "late.onnx"
    file.write_bytes(constant_half())
    addresses = {service: there._addresses[service] for service in ("registry", "feature")}
    command = ["models", "register", str(file), "--feature-set", "flights", *options]
    return await flywheel(*command, **addresses)


async def version(there: fw.Client) -> model_pb2.ModelVersion:
    request = registry_pb2.GetModelVersionRequest(name=VERSION)
    return (await there.registry.GetModelVersion(request)).model_version


async def test_a_registered_file_has_all_that_its_options_say(
    there: fw.Client, tmp_path: Path, vocabularies: Path
) -> None:
    options = ["--metric", "auc=0.75", "--metric", "log_loss=0.5", "--tag", "team=ops", "--tag", "a=b=c"]
    options += ["--description", "trained by hand", "--training-run", "nightly"]
    done = await register(there, tmp_path, *options, "--vocabularies", str(vocabularies))
    assert 0 == done.exit_code, done.output
    found = await version(there)
    assert {"auc": 0.75, "log_loss": 0.5} == dict(found.metrics)
    assert {"team": "ops", "a": "b=c"} == dict(found.tags)
    assert ("trained by hand", "projects/default/runs/nightly") == (found.description, found.training_run)
    (text,) = signature_from_message(found.signature).inputs
    assert ("view__carrier", ("AA", "UA")) == (text.name, text.vocabulary)
    assert model_pb2.ARTIFACT_STATE_READY == found.artifact_state


@pytest.mark.parametrize("metric", ["auc", "auc=high", "=1"])
async def test_a_malformed_metric_registers_nothing(
    there: fw.Client, tmp_path: Path, vocabularies: Path, metric: str
) -> None:
    done = await register(there, tmp_path, "--metric", metric, "--vocabularies", str(vocabularies))
    assert (1, True) == (done.exit_code, f"'{metric}' is not `name=number`" in done.output), done.output
    with pytest.raises(fw.NotFound):
        await version(there)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"view__carier": ["AA"]}', "view__carier is no feature of"),
        ('["AA"]', "does not map features to lists of texts"),
        ('{"view__carrier": "AA"}', "does not map features to lists of texts"),
        ("{", "is no JSON"),
    ],
)
async def test_malformed_vocabularies_register_nothing(
    there: fw.Client, tmp_path: Path, content: str, words: str
) -> None:
    done = await register(there, tmp_path, "--vocabularies", str(vocabulary_file(tmp_path, content)))
    assert (1, True) == (done.exit_code, words in " ".join(done.output.split())), done.output
    with pytest.raises(fw.NotFound):
        await version(there)
