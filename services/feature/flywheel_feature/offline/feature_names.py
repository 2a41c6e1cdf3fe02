"""What the features of a training set are called."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument
from flywheel_feature.offline.feature_join import JoinPlan
from flywheel_feature.offline.training_sets import EVENT_TIMESTAMP, LABEL, TrainingSetRequest


def feature_names(plan: JoinPlan, request: TrainingSetRequest) -> list[str]:
    """Columns of the features, in the set's order: `view__feature`, or `feature` where short names were asked for."""
    if not request.short_feature_names:
        return [f.name for f in plan.feature_set.schema]
    return [feature for _, feature, _ in plan.outputs]


def check_names(plan: JoinPlan, request: TrainingSetRequest) -> None:
    """Raises InvalidArgument DUPLICATE_COLUMN where a short name is that of another column, WRONG_SPINE for a join key or
    request field that is called like a column of every training set."""
    spine = {f.name for f in (*plan.feature_set.join_keys, *plan.feature_set.request_fields)}
    taken = spine | {EVENT_TIMESTAMP, LABEL} if request.short_feature_names else {EVENT_TIMESTAMP, LABEL}
    for name in feature_names(plan, request):
        if name in taken:
            raise InvalidArgument(
                f"Two columns of the training set would be called {name!r}: ask for it without short_feature_names.",
                reason="DUPLICATE_COLUMN",
                field=name,
            )
        taken.add(name)
    reserved = {EVENT_TIMESTAMP, LABEL, *(f.name for f in plan.feature_set.schema)}
    for name in sorted(spine & reserved):
        raise InvalidArgument(
            f"{name!r} is the name of a join key or request field and of another column of the training set: rename it.",
            reason="WRONG_SPINE",
            field=name,
        )
