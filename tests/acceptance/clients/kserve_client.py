"""Calls a gateway with KServe's gRPC client and prints what it got as JSON. Imports nothing of ours.

kserve_client.py ADDRESS MODEL VERSION_NAME
"""

import asyncio
import json
import sys

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest


async def main(address: str, model: str, version: str) -> dict:
    client = InferenceGRPCClient(address, retries=2)
    raw = InferInput("INPUT", [2, 3], "FP32")
    raw.set_data_from_numpy(np.array([[1, 2, 0], [0.5, -1, 2]], np.float32), binary_data=True)
    scored = await client.infer(InferRequest(model_name=version, infer_inputs=[raw], request_id="kserve"))
    flights = [
        InferInput("carrier", [2], "BYTES", data=["UA", "DL"]),
        InferInput("miles", [2], "FP64", data=[1.0, 4.0]),
        InferInput("origin", [2], "BYTES", data=["JFK", "LGA"]),
    ]
    predicted = await client.infer(InferRequest(model_name=model, infer_inputs=flights))
    found = {output.name: output for output in predicted.outputs}
    try:
        await client.infer(InferRequest(model_name=version + "0", infer_inputs=[raw]))
        refused = ""
    except grpc.RpcError as error:
        refused = error.code().name
    result = {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "model_ready": await client.is_model_ready(model),
        "unknown_ready": await client.is_model_ready(model + "-unknown"),
        "id": scored.id,
        "raw": scored.outputs[0].as_numpy().ravel().tolist(),
        "scores": found["score"].as_numpy().tolist(),
        "sources": [text.decode() for text in found["source"].as_numpy().tolist()],
        "refused": refused,
    }
    await client.close()
    return result


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
