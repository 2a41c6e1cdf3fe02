"""Lineage both ways, who reads an old version, and what models keep from being deleted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flywheel_common.errors import FailedPrecondition, NotFound, Unavailable
from flywheel_feature.apply.lineage import ModelUse, ModelUses, lineage_of
from flywheel_feature.apply.plan import Declared, make_plan
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import HOUR, FeatureSet, Metadata, VersionRef

from .test_definition_plans import EVERYTHING, NOW, P, applied, facts, late, plan

P_ = f"projects/{P}"
CHAMPION, OLD = f"{P_}/models/late/versions/7", f"{P_}/models/late/versions/3"
USES = ModelUses((ModelUse(CHAMPION, "late", 1), ModelUse(OLD, "late", 1, retired=True)))


@pytest.fixture
def catalog() -> Catalog:
    return applied(Catalog(P), plan(Catalog(P), EVERYTHING))


def test_a_source_leads_to_every_model_version_and_back(catalog: Catalog) -> None:
    down = lineage_of(catalog, USES, f"{P_}/sources/planes").downstream
    view, computed, bound = (
        f"{P_}/views/facts/versions/1",
        f"{P_}/views/age/versions/1",
        f"{P_}/featureSets/late/versions/1",
    )
    assert set(down) == {
        (f"{P_}/sources/planes", view), (view, computed), (view, bound), (computed, bound), (bound, CHAMPION), (bound, OLD),
    }  # fmt: skip
    up = lineage_of(catalog, USES, CHAMPION).upstream
    recent = f"{P_}/views/recent/versions/1"
    assert set(up) == {
        (f"{P_}/sources/planes", view), (f"{P_}/entities/plane", view), (f"{P_}/sources/landings", recent),
        (f"{P_}/entities/plane", recent), (f"{P_}/sources/trip", computed), (view, computed), (view, bound), (computed, bound),
        (recent, bound), (bound, CHAMPION),
    }  # fmt: skip
    assert lineage_of(catalog, USES, CHAMPION).downstream == ()


def test_a_name_without_version_stands_for_all_its_versions(catalog: Catalog) -> None:
    newer = applied(catalog, plan(catalog, Declared(views=(replace(facts, ttl=HOUR),))))
    readers = {r for _, r in lineage_of(newer, USES, f"{P_}/views/facts").downstream}
    assert CHAMPION in readers
    assert lineage_of(newer, USES, f"{P_}/views/facts/versions/2").downstream == ()


@pytest.mark.parametrize("name", [f"{P_}/views/fact", f"{P_}/models/late/versions/8", "nonsense", ""])
def test_what_does_not_exist_has_no_lineage(catalog: Catalog, name: str) -> None:
    with pytest.raises(NotFound) as raised:
        lineage_of(catalog, USES, name)
    assert raised.value.reason == "UNKNOWN_NAME"


def test_a_change_names_the_model_versions_that_read_the_old_version(catalog: Catalog) -> None:
    longer = Declared(views=(replace(facts, ttl=HOUR),))
    made = make_plan(catalog, longer, [], NOW, USES)
    assert made.changes[0].readers[-1] == CHAMPION and OLD not in made.changes[0].readers
    narrower = Declared(feature_sets=(replace(late, features=("facts:built",)),))
    assert make_plan(catalog, narrower, [], NOW, USES).changes[0].readers == (CHAMPION,)
    # A second change concerns only those that read the version before it.
    again = applied(catalog, make_plan(catalog, longer, [], NOW, USES))
    shorter = Declared(views=(replace(facts, ttl=2 * HOUR),))
    assert CHAMPION not in make_plan(again, shorter, [], NOW, USES).changes[0].readers


def test_what_a_live_model_version_reads_is_not_deleted_even_with_its_set(catalog: Catalog) -> None:
    names = [f"{P_}/{n}" for n in ("featureSets/late", "views/age", "views/facts")]
    for order in (names, names[::-1]):
        with pytest.raises(FailedPrecondition) as raised:
            make_plan(catalog, Declared(), order, NOW, USES)
        assert raised.value.reason == "IN_USE" and CHAMPION in raised.value.message
    retired = ModelUses(tuple(u for u in USES.uses if u.retired))
    assert len(make_plan(catalog, Declared(), names, NOW, retired).changes) == 3


def test_a_model_that_names_no_set_version_keeps_all_of_them(catalog: Catalog) -> None:
    uses = ModelUses((ModelUse(CHAMPION, "late", 0),))
    assert uses.of_sets([VersionRef("late", 9)]) == [CHAMPION]
    with pytest.raises(FailedPrecondition):
        make_plan(catalog, Declared(), [f"{P_}/featureSets/late"], NOW, uses)


def test_without_the_registry_nothing_is_deleted_but_versions_are_made_and_it_is_said(
    catalog: Catalog,
) -> None:
    unknown = ModelUses(known=False)
    with pytest.raises(Unavailable) as raised:
        make_plan(catalog, Declared(), [f"{P_}/featureSets/late"], NOW, unknown)
    assert raised.value.reason == "REGISTRY_DOWN"
    made = make_plan(catalog, Declared(views=(replace(facts, ttl=HOUR),)), [], NOW, unknown)
    assert made.changes[0].name.endswith("views/facts/versions/2") and "registry" in made.warnings[0]


def test_a_set_that_nothing_uses_is_deleted(catalog: Catalog) -> None:
    other = FeatureSet(P, "other", ("facts:built",), Metadata())
    more = applied(catalog, plan(catalog, Declared(feature_sets=(other,))))
    assert len(make_plan(more, Declared(), [f"{P_}/featureSets/other"], NOW, USES).changes) == 1
