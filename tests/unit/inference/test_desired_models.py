"""Desired models: changes are applied, and each specification is fetched once by its digest."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from flywheel_common.errors import Unavailable
from flywheel_inference.fakes.registry import MemoryRegistry
from flywheel_inference.fakes.saved_state import MemoryState
from flywheel_inference.releases.release import ReleaseSpec
from flywheel_inference.serving.desired_models import DesiredModels
from flywheel_inference.serving.desired_state import DesiredChange, Reference, RoutedModel, Undecodable
from tests.support.builders.inference import LOG_SPEC


class Registry(MemoryRegistry):
    """Counts the specifications that were fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    async def spec(self, release: str, digest: str, timeout: float) -> bytes:
        self.fetched.append(release)
        return await super().spec(release, digest, timeout)


def decode(reference: Reference, content: bytes) -> ReleaseSpec | Undecodable:
    if content == b"bad":
        return Undecodable(reference.release, "unknown kind")
    return replace(LOG_SPEC, name=content.decode(), digest=reference.digest)


@pytest.fixture
def registry() -> Registry:
    return Registry()


def reference(registry: Registry, release: str, content: bytes = b"") -> Reference:
    content = content or release.encode()
    digest = hashlib.sha256(content).hexdigest()
    registry.specs[digest] = content
    return Reference(release, digest)


def champions(desired: DesiredModels) -> dict[str, str]:
    return {m.model: m.champion.name for m in desired.models if m.champion is not None}


async def test_a_change_touches_only_its_models_and_fetches_only_new_releases(registry: Registry) -> None:
    desired = DesiredModels(registry, MemoryState(), decode)
    a, b, c = (reference(registry, name) for name in "abc")
    start = (RoutedModel("m", 1, a, warm=(c,)), RoutedModel("n", 1, b), RoutedModel("o", 1, b))
    await desired.apply(DesiredChange(start, snapshot=True))
    assert ["a", "b", "c"] == sorted(registry.fetched)
    await desired.apply(DesiredChange((RoutedModel("n", 2, c, challenger=b),), removed=("o",)))
    assert {"m": "a", "n": "c"} == champions(desired)
    assert ["m", "n"] == [model.model for model in desired.routed]
    await desired.apply(DesiredChange((RoutedModel("m", 3, b),), snapshot=True))
    assert {"m": "b"} == champions(desired)
    assert {b.digest} == desired.digests
    assert 3 == len(registry.fetched)


async def test_specifications_on_disk_are_not_fetched_again(registry: Registry) -> None:
    saved, a = MemoryState(), reference(registry, "a")
    change = DesiredChange((RoutedModel("m", 1, a),), snapshot=True)
    await DesiredModels(registry, saved, decode).apply(change)
    registry.set_down(True)
    again = DesiredModels(registry, saved, decode)
    await again.apply(change)
    assert ({"m": "a"}, ["a"]) == (champions(again), registry.fetched)


async def test_boot_without_registry_reports_specifications_that_are_missing(registry: Registry) -> None:
    desired, a = DesiredModels(registry, MemoryState(), decode), reference(registry, "a")
    change = DesiredChange((RoutedModel("m", 1, a),), snapshot=True)
    await desired.apply(change, offline=True)
    (model,) = desired.models
    assert model.champion == Undecodable("a", "Its specification is not on disk.")
    await desired.apply(change)
    assert ({"m": "a"}, ["a"]) == (champions(desired), registry.fetched)


async def test_an_outage_during_a_change_leaves_all_models_as_they_were(registry: Registry) -> None:
    desired = DesiredModels(registry, MemoryState(), decode)
    a, b = reference(registry, "a"), reference(registry, "b")
    await desired.apply(DesiredChange((RoutedModel("m", 1, a),), snapshot=True))
    registry.set_down(True)
    with pytest.raises(Unavailable):
        await desired.apply(DesiredChange((RoutedModel("m", 2, b),), removed=("n",)))
    assert {"m": "a"} == champions(desired)


async def test_specifications_that_cannot_be_used_are_named_and_others_serve(registry: Registry) -> None:
    desired = DesiredModels(registry, MemoryState(), decode)
    good, bad = reference(registry, "good"), reference(registry, "bad", b"bad")
    forged = Reference("forged", hashlib.sha256(b"x").hexdigest())
    registry.specs[forged.digest] = b"y"
    absent = Reference("absent", "00")
    change = [RoutedModel(ref.release, 1, ref) for ref in (good, bad, forged, absent)]
    await desired.apply(DesiredChange(tuple(change), snapshot=True))
    causes = {m.model: m.champion.cause for m in desired.models if isinstance(m.champion, Undecodable)}
    assert ["absent", "bad", "forged"] == sorted(causes)
    assert "unknown kind" == causes["bad"]
    assert "DIGEST_MISMATCH" in causes["forged"]
    assert "good" == champions(desired)["good"]
