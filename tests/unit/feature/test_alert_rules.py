"""The alert rules name metrics that the service publishes."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from prometheus_client import REGISTRY

from flywheel_feature.ingest import freshness_metrics

RULES = Path(__file__).parents[3] / "deploy" / "prometheus" / "feature.yaml"


def test_every_rule_reads_a_published_metric_and_says_what_is_wrong() -> None:
    published = {name for family in REGISTRY.collect() for name in (family.name, f"{family.name}_total")}
    assert freshness_metrics.PUBLISH_SECONDS < 60, "an alert reads at least one value a minute"
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    assert ["FlywheelFeatureEventsWait", "FlywheelFeatureFreshnessMissed"] == [
        rule["alert"] for rule in group["rules"]
    ]
    for rule in group["rules"]:
        metrics = set(re.findall(r"flywheel_\w+", rule["expr"]))
        assert metrics, rule["alert"]
        assert metrics <= published
        assert rule["annotations"]["summary"]
