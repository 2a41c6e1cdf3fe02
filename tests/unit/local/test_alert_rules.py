"""The alert rules in deploy/prometheus refer to metrics and labels that the services export."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[3]
RULES = REPOSITORY / "deploy" / "prometheus"
KINDS = {"Counter": "_total", "Gauge": "", "Histogram": "_bucket"}
OF_PROMETHEUS = {"job", "instance", "le"}


def exported() -> Iterator[tuple[str, set[str]]]:
    """(name, labels) of each metric that a service declares."""
    for file in (REPOSITORY / "services").rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text())):
            name = call.func.id if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else ""
            if (
                isinstance(call, ast.Call)
                and name in KINDS
                and call.args
                and isinstance(call.args[0], ast.Constant)
            ):
                labels = [a for a in call.args[2:] if isinstance(a, ast.List)]
                found = {e.value for a in labels for e in a.elts if isinstance(e, ast.Constant)}
                yield f"{call.args[0].value}{KINDS[name]}", found


METRICS = dict(exported())


def rules() -> list[Any]:
    groups = [group for file in RULES.glob("*.yaml") for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_rule_uses_exported_metrics_and_labels(rule: Any) -> None:
    metrics = re.findall(r"\b(?:flywheel|process)_\w+", rule["expr"])
    assert metrics
    labels = set(OF_PROMETHEUS)
    for metric in metrics:
        assert metric in METRICS or metric == "process_start_time_seconds", metric
        labels |= METRICS.get(metric, set())
    grouped = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
    matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", rule["expr"])
    text = " ".join(rule["annotations"].values())
    used = {name.strip() for names in grouped for name in names.split(",")} | set(matched)
    assert used | set(re.findall(r"\$labels\.(\w+)", text)) <= labels
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description"}


def test_alert_names_are_unique() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
