"""The example of a job with TensorFlow, which the cluster does not have, as it is in examples/keras."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import flywheel as fw
from flywheel_common.config import S3Settings
from flywheel_common.storage.s3 import object_store
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from tests.support.builders.trainer import learnable_rows
from tests.support.peers.trainer import TRAINING_SET

pytestmark = [pytest.mark.slow, pytest.mark.timeout(590)]
Start = Callable[[dict[str, str]], Awaitable[Any]]
ROOT = Path(__file__).resolve().parents[3]
UV = ROOT / ".local" / "bootstrap" / "bin" / "uv"


async def test_a_keras_model_is_trained_in_its_own_environment_and_exported(
    trainer_settings: dict[str, str],
    with_peers: dict[str, str],
    with_ray: dict[str, str],
    start_trainer: Start,
    tmp_path: Path,
    s3_settings: S3Settings,
    bucket: str,
) -> None:
    settings = trainer_settings | with_peers | with_ray
    variables = json.loads(settings["FLYWHEEL_TRAINER_JOB_ENVIRONMENT"])
    variables["FLYWHEEL_JOB_ENVIRONMENTS"] = str(tmp_path / "environments")
    settings["FLYWHEEL_TRAINER_JOB_ENVIRONMENT"] = json.dumps(variables)
    settings["FLYWHEEL_TRAINER_JOB_UV"] = str(UV)
    await start_trainer(settings)
    async with fw.Client(trainer=settings["FLYWHEEL_TRAINER_LISTEN"]) as client:
        await client.trainer.CreateExperiment(
            pb.CreateExperimentRequest(parent="projects/default", experiment_id="late")
        )
        run = await client.run_job(
            fw.TrainJob(
                "train.py:train",
                ROOT / "examples" / "keras",
                requirements="requirements.lock",
                experiment="late",
                data={"train": TRAINING_SET},
                params={"epochs": 3},
            )
        )
    assert run.metrics["loss"] < 0.69  # that of a coin
    stored = {artifact.name: artifact.uri.removeprefix(f"s3://{bucket}/") for artifact in run.artifacts}
    async with object_store(s3_settings) as store:
        model = await store.get(stored["model.onnx"])
        report = json.loads(await store.get(stored["report.json"]))
        predictions = np.frombuffer(await store.get(stored["predictions"]), "<f4")
        assert "tensorflow" in (await store.get(stored["requirements.resolved.txt"])).decode()
    assert "keras" == report["framework"]
    names = [one["name"] for one in report["inputs"]]
    rows = learnable_rows(4000).select(names).cast(float).to_numpy().astype(np.float32)[:64]
    scores = onnxruntime.InferenceSession(model).run(["SCORE"], {"INPUT": rows})[0][:, 0]
    assert np.allclose(predictions, scores, atol=1e-5)
