"""How commands take a version: by number, by alias or by its full name, on a registry in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

import flywheel as fw
from flywheel_protos.registry.v1 import approval_pb2, model_pb2
from tests.support.builders.registry import ModelClient
from tests.support.commands import flywheel

FORMS = ("late/1", "late@best", "late/versions/1", "{version}", "{model}@best", "{model}/aliases/best")


@pytest.fixture
async def named(client: ModelClient) -> ModelClient:
    """A model whose first version has the alias `best`."""
    await client.create(gate_policy=model_pb2.GatePolicy(min_approvals=1))
    await client.version()
    await client.version()
    async with fw.Client(registry=client.stub.address) as sdk:
        await sdk.set_alias("best", "late/1")
    return client


@pytest.mark.parametrize(
    "command",
    [
        ("promote",),
        ("reject", "--reason", "leaks the label"),
        ("release",),
        ("tag", "team=ops"),
        ("alias", "other"),
        ("check",),
        ("lineage",),
    ],
    ids=lambda words: words[0],
)
async def test_a_command_takes_the_version_that_an_alias_names(
    named: ModelClient, command: tuple[str, ...]
) -> None:
    name, *options = command
    if name == "release":
        await named.promote(f"{named.model}/versions/1")
    if name == "lineage":
        await named.release(f"{named.model}/versions/1")
    done = await flywheel("--json", "models", name, "late@best", *options, registry=named.stub.address)
    assert 0 == done.exit_code, done.output
    assert f"{named.model}/versions/1" in done.output
    assert f"{named.model}/versions/2" not in done.output


async def test_an_approval_by_alias_is_of_the_version_it_names(named: ModelClient) -> None:
    done = await flywheel("models", "approve", "late@best", "--reason", "seen", registry=named.stub.address)
    assert 0 == done.exit_code, done.output
    request = approval_pb2.ListApprovalsRequest(parent=f"{named.model}/versions/1")
    assert ["seen"] == [found.reason for found in (await named.stub.ListApprovals(request)).approvals]


async def test_the_file_of_an_alias_is_downloaded(named: ModelClient, tmp_path: Path) -> None:
    to = tmp_path / "model.onnx"
    done = await flywheel("models", "download", "late@best", str(to), registry=named.stub.address)
    assert 0 == done.exit_code, done.output
    assert to.stat().st_size == len(await named.download(f"{named.model}/versions/1"))


@pytest.mark.parametrize("form", FORMS)
async def test_every_form_names_the_same_version(named: ModelClient, form: str) -> None:
    version = f"{named.model}/versions/1"
    async with fw.Client(registry=named.stub.address) as sdk:
        assert version == await sdk.resolve_version(form.format(version=version, model=named.model))


@pytest.mark.parametrize(
    "command",
    [
        ("models", "promote"),
        ("models", "why"),
        ("alerts", "performance"),
        ("monitor", "report"),
        ("monitor", "explain"),
    ],
    ids="-".join,
)
async def test_an_alias_that_does_not_exist_is_named(named: ModelClient, command: tuple[str, ...]) -> None:
    done = await flywheel(*command, "late@gone", registry=named.stub.address)
    assert (1, True) == (done.exit_code, "UNKNOWN_ALIAS" in done.output), done.output


@pytest.mark.parametrize("name", ["late", "late/x", "/1", "@best", "late@", "late/versions/x", "late/1/2"])
async def test_a_malformed_version_is_refused_before_the_call(name: str) -> None:
    async with fw.Client(registry="127.0.0.1:1") as sdk:
        with pytest.raises(ValueError, match="neither"):
            await sdk.resolve_version(name)
