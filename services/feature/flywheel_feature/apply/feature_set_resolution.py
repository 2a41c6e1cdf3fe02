"""Resolution of feature sets: binds features to view versions and collects what a caller must send."""

from __future__ import annotations

from dataclasses import replace

from flywheel_feature.apply.view_resolution import Scope
from flywheel_feature.apply.violations import Findings, Violation
from flywheel_feature.definitions.model import FeatureSet, Field, OnDemandView, View, column_name


def resolve_feature_set(declared: FeatureSet, scope: Scope) -> tuple[FeatureSet, list[Violation]]:
    """The set bound to the latest view versions, with its schema, join keys and request fields."""
    found = Findings(declared.base_name)
    found.identifier("name", declared.id)
    names: list[str] = []
    for i, text in enumerate(declared.features):
        view_id, colon, feature = text.partition(":")
        view = scope.views.get(view_id)
        if not colon:
            found.add(f"features[{i}]", f"{text!r} is not of the form view:feature")
        elif view is None:
            found.add(f"features[{i}]", f"view {view_id!r} does not exist", unknown=True)
        elif feature == "*":
            names += [f"{view_id}:{f.name}" for f in view.features]
        elif view.feature(feature) is None:
            found.add(f"features[{i}]", f"view {view_id!r} has no feature {feature!r}", unknown=True)
        else:
            names.append(text)
    if not declared.features:
        found.add("features", "a feature set has at least one feature")
    found.unique("features", names)
    if found.violations:
        return declared, found.violations
    used = [scope.views[view_id] for view_id in dict.fromkeys(n.partition(":")[0] for n in names)]
    schema: list[Field] = []
    for name in names:
        view_id, _, feature_name = name.partition(":")
        given = scope.views[view_id].feature(feature_name)
        assert given is not None
        schema.append(
            Field(column_name(view_id, feature_name), given.data_type, given.vector_size, given.description)
        )
    keys, requests = _inputs(used, scope, found)
    resolved = replace(
        declared,
        features=tuple(names),
        views=tuple(v.ref for v in used),
        schema=tuple(schema),
        join_keys=keys,
        request_fields=requests,
    )
    return resolved, found.violations


def _inputs(views: list[View], scope: Scope, found: Findings) -> tuple[tuple[Field, ...], tuple[Field, ...]]:
    """Join keys and request fields that a caller must send to read these views."""
    keys: dict[str, Field] = {}
    requests: dict[str, Field] = {}
    stored: dict[str, View] = {}
    for view in views:
        if isinstance(view.kind, OnDemandView):
            stored.update({i: scope.views[i] for i in view.kind.views if i in scope.views})
            for source_id in view.kind.request_sources:
                requests.update({f.name: f for f in scope.sources[source_id].schema})
        else:
            stored[view.id] = view
    for view in stored.values():
        for key in scope.entities[view.entity].join_keys if view.entity in scope.entities else ():
            if keys.setdefault(key.name, key).data_type != key.data_type:
                found.add("features", f"join key {key.name!r} has two types in the views of this set")
    for name in sorted(keys.keys() & requests.keys()):
        key, field = keys[name], requests[name]
        if key.data_type != field.data_type:
            found.add(
                "features",
                f"{name!r} is a join key of type {key.data_type.name} and a request field of type "
                f"{field.data_type.name}: a caller sends one value for both, so their types must be equal",
            )
    return tuple(keys.values()), tuple(requests.values())
