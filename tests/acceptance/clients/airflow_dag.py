"""A DAG that starts a pipeline and a job of Flywheel. As a program, it runs itself for a logical date, and
prints the states of its tasks as JSON."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, task

from flywheel_airflow import FlywheelJobOperator, FlywheelPipelineOperator

PIPELINE = os.environ.get("TEST_PIPELINE", "late-data")
DEFERRABLE = bool(os.environ.get("TEST_DEFERRABLE"))
OUTPUTS = Path(os.environ.get("TEST_OUTPUTS", "outputs.json"))


@task
def store(data: Any, train: Any) -> None:
    OUTPUTS.write_text(json.dumps({"data": data, "train": train}))


with DAG("late", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)) as dag:
    options: dict[str, Any] = {"poll_interval": timedelta(seconds=0.3), "deferrable": DEFERRABLE}
    data = FlywheelPipelineOperator(
        task_id="data",
        pipeline=PIPELINE,
        pipeline_params={"end": "{{ logical_date.strftime('%Y-%m-%dT%H:%M:%SZ') }}"},
        **options,
    )
    spec = {
        "experiment": "projects/default/experiments/late",
        "training_set": "{{ ti.xcom_pull('data')['training_set'] }}",
        "tabular": {"epochs": 1, "hidden_sizes": [8]},
    }
    train = FlywheelJobOperator(task_id="train", job={"train": spec}, **options)
    data >> train
    store(data.output, train.output)

if __name__ == "__main__":
    date = datetime.fromisoformat(sys.argv[1])
    run = dag.test(run_after=date, logical_date=date)
    print(json.dumps({one.task_id: str(one.state) for one in run.get_task_instances()}))
