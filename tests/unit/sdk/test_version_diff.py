"""The lines of `flywheel diff`."""

from __future__ import annotations

from typing import Any

from flywheel.cli.version_diff import diff_lines
from flywheel_protos.feature.v1 import definitions_pb2 as pb


def view(**changes: Any) -> pb.View:
    made = pb.View(name="projects/p/views/v/versions/1", version=1, owner="ops", tags={"team": "a"})
    made.ttl.FromSeconds(60)
    made.batch.source = "projects/p/sources/s"
    for name in changes.pop("features", ("x", "y")):
        made.batch.features.add(name=name, data_type=4)
        made.features.add(name=name, data_type=4)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_equal_definitions_have_no_differences() -> None:
    assert diff_lines(view(), view(name="projects/p/views/v/versions/2", version=2)) == []


def test_diff_lines_name_field_paths_and_list_elements() -> None:
    newer = view(features=("y", "z"), owner="data")
    newer.ttl.FromSeconds(90)
    newer.batch.features[0].data_type = 2
    newer.tags["team"] = "b"
    assert set(diff_lines(view(), newer)) == {
        "ttl: 60s -> 90s",
        "owner: ops -> data",
        "tags.team: a -> b",
        "batch.features[y].data_type: DATA_TYPE_FLOAT64 -> DATA_TYPE_INT64",
        "- batch.features[x]: {'name': 'x', 'data_type': 'DATA_TYPE_FLOAT64'}",
        "+ batch.features[z]: {'name': 'z', 'data_type': 'DATA_TYPE_FLOAT64'}",
    }


def test_a_feature_set_diff_shows_features_and_order() -> None:
    old = pb.FeatureSet(
        version=1, features=["v:a", "v:b", "v:c"], view_versions=["projects/p/views/v/versions/1"]
    )
    new = pb.FeatureSet(
        version=2, features=["v:c", "v:b", "v:d"], view_versions=["projects/p/views/v/versions/2"]
    )
    assert diff_lines(old, new) == [
        "- features: v:a",
        "+ features: v:d",
        "features: the order differs",
        "- view_versions: projects/p/views/v/versions/1",
        "+ view_versions: projects/p/views/v/versions/2",
    ]
