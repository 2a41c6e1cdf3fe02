"""Compares declared definitions with the applied ones and plans the changes.

A dry run and an apply use the same function, so they cannot differ.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import datetime
from typing import Any

from flywheel_feature.apply.definition_checks import check_entity, check_source
from flywheel_feature.apply.errors import (
    InUse,
    InvalidDefinition,
    RegistryDown,
    UnknownDeletion,
    UnknownReference,
)
from flywheel_feature.apply.feature_set_resolution import resolve_feature_set
from flywheel_feature.apply.lineage import ModelUses
from flywheel_feature.apply.view_resolution import Scope, resolve_view
from flywheel_feature.apply.violations import Violation
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import (
    Entity,
    FeatureSet,
    Metadata,
    OnDemandView,
    RequestSource,
    Source,
    VersionRef,
    View,
)

NO_USES = ModelUses()
REGISTRY_DOWN = "The model registry does not answer, so the models that read the old versions are not listed."
Definition = Entity | Source | View | FeatureSet
SHOWN_VIOLATIONS = 10


class Action(enum.StrEnum):
    CREATE = "CREATE"
    NEW_VERSION = "NEW_VERSION"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    UNCHANGED = "UNCHANGED"


@dataclass(frozen=True, slots=True)
class Declared:
    """The definitions of one apply as sent: unresolved, version 0."""

    entities: tuple[Entity, ...] = ()
    sources: tuple[Source, ...] = ()
    views: tuple[View, ...] = ()
    feature_sets: tuple[FeatureSet, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    action: Action
    name: str
    differences: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    definition: Definition | None = None
    """The definition to store; None for DELETE and UNCHANGED."""


@dataclass
class ApplyPlan:
    changes: list[Change] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def raise_violations(self) -> None:
        """Raises UnknownReference or InvalidDefinition when there is a violation."""
        if not self.violations:
            return
        lines = [f"{v.name}: {v.field}: {v.message}" for v in self.violations[:SHOWN_VIOLATIONS]]
        more = len(self.violations) - len(lines)
        error = UnknownReference if any(v.unknown for v in self.violations) else InvalidDefinition
        raise error(
            f"{len(self.violations)} mistakes in the definitions, nothing was applied: {'; '.join(lines)}"
            + (f"; and {more} more" if more else ""),
            **{f"violation_{i}": line for i, line in enumerate(lines)},
        )


def make_plan(
    catalog: Catalog,
    declared: Declared,
    delete_names: Sequence[str],
    now: datetime,
    uses: ModelUses = NO_USES,
) -> ApplyPlan:
    """Plan an apply; violations are in the plan.

    Deletions raise UnknownDeletion, InUse, or RegistryDown when the uses by models are not known.
    """
    plan = ApplyPlan()
    if not uses.known:
        plan.warnings.append(REGISTRY_DOWN)
    entities, sources = dict(catalog.entities), dict(catalog.sources)
    for entity in _once(declared.entities, plan):
        plan.violations += check_entity(entity)
        _compare_unversioned(plan, catalog, catalog.entities.get(entity.id), entity)
        entities[entity.id] = entity
    for source in _once(declared.sources, plan):
        plan.violations += check_source(source)
        _compare_unversioned(plan, catalog, catalog.sources.get(source.id), source)
        sources[source.id] = source
    views = dict(catalog.latest_views)
    ordered = sorted(_once(declared.views, plan), key=lambda v: isinstance(v.kind, OnDemandView))
    for view in ordered:
        resolved, violations = resolve_view(view, Scope(entities, sources, views))
        plan.violations += violations
        old = catalog.latest_views.get(view.id)
        last = max((ref.version for ref in catalog.views if ref.id == view.id), default=0)
        readers = catalog.readers_of_view(view.id)
        if old is not None:
            readers = [*readers, *uses.of_view(catalog, view.id, old.version)]
        views[view.id] = _compare_versioned(plan, old, resolved, last, readers, now)
    for feature_set in _once(declared.feature_sets, plan):
        bound, violations = resolve_feature_set(feature_set, Scope(entities, sources, views))
        plan.violations += violations
        last = max((ref.version for ref in catalog.feature_sets if ref.id == feature_set.id), default=0)
        before = catalog.latest_feature_sets.get(feature_set.id)
        readers = uses.of_sets([before.ref]) if before is not None else []
        _compare_versioned(plan, before, bound, last, readers, now)
    _plan_deletions(plan, catalog, delete_names, uses)
    return plan


def definition_only(value: Any) -> Any:
    """A definition without the fields whose change makes no new version.

    These are metadata, descriptions, version, creation time and freshness SLA.
    """
    if isinstance(value, VersionRef):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        cleared: dict[str, Any] = {}
        for f in fields(value):
            if f.name == "metadata":
                cleared[f.name] = Metadata()
            elif f.name == "description":
                cleared[f.name] = ""
            elif f.name in ("version", "freshness_sla"):
                cleared[f.name] = 0
            elif f.name == "created_at":
                cleared[f.name] = None
            else:
                cleared[f.name] = definition_only(getattr(value, f.name))
        return replace(value, **cleared)
    if isinstance(value, tuple):
        return tuple(definition_only(v) for v in value)
    return value


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """One line per field that differs."""
    if is_dataclass(old) and type(old) is type(new):
        lines: list[str] = []
        for f in fields(old):
            if f.name not in ("version", "created_at"):
                lines += differences(
                    getattr(old, f.name), getattr(new, f.name), f"{path}.{f.name}" if path else f.name
                )
        return lines
    if isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        return [
            line
            for i, (a, b) in enumerate(zip(old, new, strict=True))
            for line in differences(a, b, f"{path}[{i}]")
        ]
    return [] if old == new else [f"{path}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _once(items: Sequence[Any], plan: ApplyPlan) -> list[Any]:
    kept: dict[str, Any] = {}
    for item in items:
        if item.id in kept:
            plan.violations.append(
                Violation(getattr(item, "base_name", item.name), "name", "the name is defined twice")
            )
        kept[item.id] = item
    return list(kept.values())


def _compare_unversioned(plan: ApplyPlan, catalog: Catalog, old: Any, new: Any) -> None:
    if old is None:
        plan.changes.append(Change(Action.CREATE, new.name, definition=new))
        return
    if old == new:
        plan.changes.append(Change(Action.UNCHANGED, new.name))
        return
    readers = _readers(catalog, new)
    if readers and definition_only(old) != definition_only(new):
        plan.violations += [Violation(new.name, path, message) for path, message in _breaking(old, new)]
    plan.changes.append(Change(Action.UPDATE, new.name, tuple(differences(old, new)), tuple(readers), new))


def _readers(catalog: Catalog, item: Entity | Source) -> list[str]:
    if isinstance(item, Entity):
        return sorted(v.name for v in catalog.latest_views.values() if v.entity == item.id)
    names: list[str] = []
    for view in catalog.latest_views.values():
        reads = view.kind.request_sources if isinstance(view.kind, OnDemandView) else (view.kind.source,)
        if item.id in reads:
            names.append(view.name)
    return sorted(names)


def _breaking(old: Any, new: Any) -> list[tuple[str, str]]:
    """Changes that are refused while views read the definition: stored data would change its meaning."""
    advice = "views read it: define a new one under another name"
    if isinstance(old, Entity):
        same = definition_only(old.join_keys) == definition_only(new.join_keys)
        return [] if same else [("join_keys", f"join keys cannot change while {advice}")]
    found: list[tuple[str, str]] = []
    if type(old.kind) is not type(new.kind):
        found.append(("kind", f"the kind of a source cannot change while {advice}"))
    if (old.timestamp_field, old.created_field) != (new.timestamp_field, new.created_field):
        found.append(("timestamp_field", f"time fields cannot change while {advice}"))
    for given in old.schema:
        now = new.field(given.name)
        if now is None:
            found.append(("schema", f"field {given.name!r} cannot be removed while {advice}"))
        elif (now.data_type, now.vector_size) != (given.data_type, given.vector_size):
            found.append(("schema", f"field {given.name!r} cannot change its type while {advice}"))
    if isinstance(old.kind, RequestSource):
        added = [f.name for f in new.schema if old.field(f.name) is None]
        found += [("schema", f"request field {name!r} cannot be added while {advice}") for name in added]
    return found


def _compare_versioned(
    plan: ApplyPlan, old: Any, new: Any, last: int, readers: Sequence[str], now: datetime
) -> Any:
    if old is None:
        created = replace(new, version=last + 1, created_at=now)
        plan.changes.append(Change(Action.CREATE, created.name, definition=created))
        return created
    if definition_only(old) != definition_only(new):
        changed = replace(new, version=last + 1, created_at=now)
        lines = differences(definition_only(old), definition_only(new))
        plan.changes.append(Change(Action.NEW_VERSION, changed.name, tuple(lines), tuple(readers), changed))
        return changed
    updated = replace(new, version=old.version, created_at=old.created_at)
    if updated == old:
        plan.changes.append(Change(Action.UNCHANGED, old.name))
        return old
    plan.changes.append(Change(Action.UPDATE, old.name, tuple(differences(old, updated)), (), updated))
    return updated


def _plan_deletions(plan: ApplyPlan, catalog: Catalog, names: Sequence[str], uses: ModelUses) -> None:
    if names and not uses.known:
        raise RegistryDown(
            "The model registry does not answer, so uses by models cannot be checked: retry later."
        )
    deleted = set(names)
    for name in dict.fromkeys(names):
        readers = [r for r in _readers_of_name(catalog, name) if r.rpartition("/versions/")[0] not in deleted]
        models = _models_of_name(catalog, name, uses)
        if models:
            raise InUse(
                f"{name} is used by {', '.join(models[:5])}: archive or reject these first.",
                name=name,
                readers=",".join(models[:5]),
            )
        if readers:
            raise InUse(
                f"{name} is read by {', '.join(readers[:5])}: delete these first, or in the same call.",
                name=name,
                readers=",".join(readers[:5]),
            )
        plan.changes.append(Change(Action.DELETE, name))


def _models_of_name(catalog: Catalog, name: str, uses: ModelUses) -> list[str]:
    """Model versions that use any version of a view or feature set."""
    collection, _, item = name.removeprefix(f"projects/{catalog.project}/").partition("/")
    if collection == "views":
        return uses.of_view(catalog, item)
    if collection == "featureSets":
        return uses.of_sets([ref for ref in catalog.feature_sets if ref.id == item])
    return []


def _readers_of_name(catalog: Catalog, name: str) -> list[str]:
    prefix = f"projects/{catalog.project}/"
    collection, _, item = name.removeprefix(prefix).partition("/")
    if collection == "entities" and item in catalog.entities:
        return _readers(catalog, catalog.entities[item])
    if collection == "sources" and item in catalog.sources:
        return _readers(catalog, catalog.sources[item])
    if collection == "views" and item in catalog.latest_views:
        return catalog.readers_of_view(item)
    if collection == "featureSets" and item in catalog.latest_feature_sets:
        return []
    raise UnknownDeletion(f"{name} does not exist, so it cannot be deleted.", name=name)
