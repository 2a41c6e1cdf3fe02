"""A registry that wants a model per number of features: `python -m bench.inference.registry_process PORT …`.

The numbers of features follow the port; model `f3` reads the first 3 features of the view `fifty`.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from typing import Any

import numpy as np

from bench.feature.definitions import NAMES
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_protos.types.v1 import value_pb2 as types
from tests.support.builders.inference import expected_score, onnx_model
from tests.support.builders.onnx_models import golden_rows
from tests.support.peers.inference import RegistryServicer, registry_server


def model_name(features: int) -> str:
    return f"projects/default/models/f{features}"


def served_model(registry: RegistryServicer, features: int) -> Any:
    """A ServingModel whose release has this number of features."""
    weights = tuple(np.linspace(-1, 1, features).tolist())
    content = onnx_model(weights, 0.0)
    version = f"{model_name(features)}/versions/1"
    registry.artifacts[version, "model.onnx"] = content
    feature_set = f"projects/default/featureSets/first_{features}/versions/1"
    rows = np.random.default_rng(0).random((4, features)).astype(np.float32)
    scores = np.array([expected_score(weights, 0.0, row) for row in rows.tolist()], np.float32)
    release = model_pb2.ServingRelease(
        release=model_pb2.Release(
            name=f"{model_name(features)}/releases/1",
            model_version=version,
            feature_set=feature_set,
            threshold=0.5,
        ),
        model_version=model_pb2.ModelVersion(
            name=version,
            feature_set=feature_set,
            signature=model_pb2.Signature(
                inputs=[
                    model_pb2.SignatureInput(name=f"fifty__{name}", data_type=types.DATA_TYPE_FLOAT64)
                    for name in NAMES[:features]
                ]
            ),
            artifacts=[
                model_pb2.Artifact(
                    name="model.onnx",
                    size_bytes=len(content),
                    sha256=hashlib.sha256(content).hexdigest(),
                )
            ],
            golden_rows=golden_rows(rows, scores),
        ),
    )
    return model_pb2.ServingModel(
        model=model_name(features), generation=1, champion=registry.reference(release)
    )


async def main(port: int, features: list[int]) -> None:
    registry = RegistryServicer()
    registry.desired = registry_pb2.WatchServingResponse(
        models=[served_model(registry, number) for number in features]
    )
    server = registry_server(registry)
    server.port = port
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), [int(number) for number in sys.argv[2:]]))
