"""Calls a gateway with MLServer's stub, codecs and converters; prints what it got as JSON. Imports nothing of
ours.

mlserver_client.py ADDRESS MODEL VERSION_NAME
"""

import json
import sys

import grpc
import numpy as np
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.grpc import converters
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from mlserver.types import InferenceRequest


def main(address: str, model: str, version: str) -> dict:
    with grpc.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)

        def infer(name: str, inputs: list, *, use_raw: bool) -> dict:
            request = converters.ModelInferRequestConverter.from_types(
                InferenceRequest(inputs=inputs), model_name=name, model_version="", use_raw=use_raw
            )
            answer = converters.ModelInferResponseConverter.to_types(stub.ModelInfer(request))
            return {output.name: output for output in answer.outputs}

        rows = np.array([[1, 2, 0], [0.5, -1, 2]], np.float32)
        results = {}
        for use_raw in (False, True):
            scored = infer(version, [NumpyCodec.encode_input("INPUT", rows)], use_raw=use_raw)
            flights = [
                StringCodec.encode_input("carrier", ["UA", "DL"]),
                NumpyCodec.encode_input("miles", np.array([1.0, 4.0])),
                StringCodec.encode_input("origin", ["JFK", "LGA"]),
            ]
            found = infer(model, flights, use_raw=use_raw)
            results["raw" if use_raw else "contents"] = {
                "raw": NumpyCodec.decode_output(scored["SCORE"]).ravel().tolist(),
                "scores": NumpyCodec.decode_output(found["score"]).ravel().tolist(),
                "sources": StringCodec.decode_output(found["source"]),
            }
        metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name=model))
        index = stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
        return {
            **results,
            "live": stub.ServerLive(pb.ServerLiveRequest()).live,
            "ready": stub.ServerReady(pb.ServerReadyRequest()).ready,
            "model_ready": stub.ModelReady(pb.ModelReadyRequest(name=model)).ready,
            "server": converters.ServerMetadataResponseConverter.to_types(
                stub.ServerMetadata(pb.ServerMetadataRequest())
            ).name,
            "inputs": [
                t.name for t in converters.ModelMetadataResponseConverter.to_types(metadata).inputs or []
            ],
            "index": [(m.name, m.version) for m in index.models],
        }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
