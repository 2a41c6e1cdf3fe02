"""Fills a new MLflow server; runs in the environment of MLflow: mlflow_client.py URL MODEL_FILE.

Prints what a user of MLflow sees, as JSON.
"""

import json
import math
import sys
import tempfile
from pathlib import Path

import mlflow
from mlflow import MlflowClient

MLMODEL = """artifact_path: model
flavors:
  onnx:
    code: null
    data: model.onnx
    onnx_version: 1.18.0
    providers:
    - CPUExecutionProvider
  python_function:
    loader_module: mlflow.onnx
    data: model.onnx
"""


def main() -> None:
    url, model = sys.argv[1], Path(sys.argv[2])
    mlflow.set_tracking_uri(url)
    mlflow.set_experiment("Flight delays / v1")
    client = MlflowClient()
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_name="parent") as parent:
        mlflow.log_params({"lr": 0.1, "depth": 3})
        mlflow.set_tags({"team": "ops", "mlflow.note.content": "# why"})
        for step in range(5):
            mlflow.log_metric("loss", 1 / (step + 1), step=step)
        points = [mlflow.entities.Metric("history", float(s), 1_760_000_000_000 + s, s) for s in range(1000)]
        client.log_batch(parent.info.run_id, metrics=points)
        mlflow.log_metric("odd", math.nan, step=0)
        mlflow.log_metric("odd", math.inf, step=1)
        mlflow.log_metric("odd", -math.inf, step=2)
        mlflow.log_text("hello", "notes/a b.txt")
        Path(folder, "MLmodel").write_text(MLMODEL)
        Path(folder, "model.onnx").write_bytes(model.read_bytes())
        mlflow.log_artifacts(folder, "model")
        mlflow.log_metric("auc", 0.75)
        with mlflow.start_run(run_name="child", nested=True) as child:
            mlflow.log_param("fold", 1)
        source = f"{parent.info.artifact_uri}/model"
    client.create_registered_model("Late Arrivals!")
    client.create_model_version("Late Arrivals!", source, parent.info.run_id, tags={"team": "ops"})
    client.create_model_version("Late Arrivals!", source, parent.info.run_id, description="the second")
    client.create_model_version("Late Arrivals!", f"{parent.info.artifact_uri}/notes", parent.info.run_id)
    client.set_registered_model_alias("Late Arrivals!", "champion", 2)
    unfinished = client.create_run(parent.info.experiment_id)
    deleted = client.create_run(parent.info.experiment_id)
    client.delete_run(deleted.info.run_id)
    seen = client.get_run(parent.info.run_id)
    print(
        json.dumps(
            {
                "parent": parent.info.run_id,
                "child": child.info.run_id,
                "unfinished": unfinished.info.run_id,
                "params": seen.data.params,
                "start": seen.info.start_time,
                "end": seen.info.end_time,
                "loss": [
                    [m.step, m.value, m.timestamp]
                    for m in client.get_metric_history(seen.info.run_id, "loss")
                ],
            }
        )
    )


if __name__ == "__main__":
    main()
