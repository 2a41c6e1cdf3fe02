"""Lineage in both directions, readers of old versions, and models that prevent a deletion."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flywheel_common.errors import FailedPrecondition, NotFound, Unavailable
from flywheel_feature.apply.lineage import ModelUse, ModelUses, lineage_of
from flywheel_feature.apply.plan import Declared, make_plan
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import HOUR, FeatureSet, Metadata, VersionRef
from tests.support.builders.apply_example import (
    NOW,
    P,
    applied,
    example_catalog,
    facts,
    late,
    plan,
)

P_ = f"projects/{P}"
CHAMPION, OLD = f"{P_}/models/late/versions/7", f"{P_}/models/late/versions/3"
USES = ModelUses((ModelUse(CHAMPION, "late", 1), ModelUse(OLD, "late", 1, retired=True)))


@pytest.fixture
def catalog() -> Catalog:
    return example_catalog()


def test_lineage_connects_sources_and_model_versions(catalog: Catalog) -> None:
    down = lineage_of(catalog, USES, f"{P_}/sources/planes").downstream
    view, computed, bound = (
        f"{P_}/views/facts/versions/1",
        f"{P_}/views/age/versions/1",
        f"{P_}/featureSets/late/versions/1",
    )
    assert set(down) == {
        (f"{P_}/sources/planes", view),
        (view, computed),
        (view, bound),
        (computed, bound),
        (bound, CHAMPION),
        (bound, OLD),
    }
    up = lineage_of(catalog, USES, CHAMPION).upstream
    recent = f"{P_}/views/recent/versions/1"
    assert set(up) == {
        (f"{P_}/sources/planes", view),
        (f"{P_}/entities/plane", view),
        (f"{P_}/sources/landings", recent),
        (f"{P_}/entities/plane", recent),
        (f"{P_}/sources/trip", computed),
        (view, computed),
        (view, bound),
        (computed, bound),
        (recent, bound),
        (bound, CHAMPION),
    }
    assert lineage_of(catalog, USES, CHAMPION).downstream == ()


def test_a_name_without_version_means_all_versions(catalog: Catalog) -> None:
    newer = applied(catalog, plan(catalog, Declared(views=(replace(facts, ttl=HOUR),))))
    readers = {r for _, r in lineage_of(newer, USES, f"{P_}/views/facts").downstream}
    assert CHAMPION in readers
    assert lineage_of(newer, USES, f"{P_}/views/facts/versions/2").downstream == ()


@pytest.mark.parametrize("name", [f"{P_}/views/fact", f"{P_}/models/late/versions/8", "not-a-name", ""])
def test_an_unknown_name_has_no_lineage(catalog: Catalog, name: str) -> None:
    with pytest.raises(NotFound) as raised:
        lineage_of(catalog, USES, name)
    assert raised.value.reason == "UNKNOWN_NAME"


def test_a_change_lists_model_versions_that_read_the_old_version(catalog: Catalog) -> None:
    longer = Declared(views=(replace(facts, ttl=HOUR),))
    made = make_plan(catalog, longer, [], NOW, USES)
    assert made.changes[0].readers[-1] == CHAMPION and OLD not in made.changes[0].readers
    narrower = Declared(feature_sets=(replace(late, features=("facts:built",)),))
    assert make_plan(catalog, narrower, [], NOW, USES).changes[0].readers == (CHAMPION,)
    # A second change lists only the readers of the version before it.
    again = applied(catalog, make_plan(catalog, longer, [], NOW, USES))
    shorter = Declared(views=(replace(facts, ttl=2 * HOUR),))
    assert CHAMPION not in make_plan(again, shorter, [], NOW, USES).changes[0].readers


def test_definitions_that_a_live_model_reads_are_not_deleted(catalog: Catalog) -> None:
    names = [f"{P_}/{n}" for n in ("featureSets/late", "views/age", "views/facts")]
    for order in (names, names[::-1]):
        with pytest.raises(FailedPrecondition) as raised:
            make_plan(catalog, Declared(), order, NOW, USES)
        assert raised.value.reason == "IN_USE" and CHAMPION in raised.value.message
    retired = ModelUses(tuple(u for u in USES.uses if u.retired))
    assert len(make_plan(catalog, Declared(), names, NOW, retired).changes) == 3


def test_a_model_without_set_version_protects_all_versions(catalog: Catalog) -> None:
    uses = ModelUses((ModelUse(CHAMPION, "late", 0),))
    assert uses.of_sets([VersionRef("late", 9)]) == [CHAMPION]
    with pytest.raises(FailedPrecondition):
        make_plan(catalog, Declared(), [f"{P_}/featureSets/late"], NOW, uses)


def test_without_the_registry_deletes_fail_and_changes_warn(
    catalog: Catalog,
) -> None:
    unknown = ModelUses(known=False)
    with pytest.raises(Unavailable) as raised:
        make_plan(catalog, Declared(), [f"{P_}/featureSets/late"], NOW, unknown)
    assert raised.value.reason == "REGISTRY_DOWN"
    made = make_plan(catalog, Declared(views=(replace(facts, ttl=HOUR),)), [], NOW, unknown)
    assert made.changes[0].name.endswith("views/facts/versions/2") and "registry" in made.warnings[0]


def test_an_unused_feature_set_is_deleted(catalog: Catalog) -> None:
    other = FeatureSet(P, "other", ("facts:built",), Metadata())
    more = applied(catalog, plan(catalog, Declared(feature_sets=(other,))))
    assert len(make_plan(more, Declared(), [f"{P_}/featureSets/other"], NOW, USES).changes) == 1
