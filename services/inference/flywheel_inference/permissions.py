"""Who may call what (jwt mode)."""

from __future__ import annotations

from flywheel_common.grpc.auth import PUBLIC, READ, WRITE, Permissions

SERVICE = "flywheel.inference.v1.InferenceService"
OPEN_INFERENCE = "inference.GRPCInferenceService"

PERMISSIONS: Permissions = {
    f"/{SERVICE}/Predict": READ,
    f"/{SERVICE}/BatchPredict": READ,
    f"/{SERVICE}/StreamPredict": READ,
    f"/{SERVICE}/RecordOutcome": WRITE,
    f"/{SERVICE}/GetServingStatus": READ,
    # Like grpc.health.v1, which probes call without credentials.
    f"/{OPEN_INFERENCE}/ServerLive": PUBLIC,
    f"/{OPEN_INFERENCE}/ServerReady": PUBLIC,
    f"/{OPEN_INFERENCE}/ServerMetadata": READ,
    f"/{OPEN_INFERENCE}/ModelReady": READ,
    f"/{OPEN_INFERENCE}/ModelMetadata": READ,
    f"/{OPEN_INFERENCE}/ModelInfer": READ,
    f"/{OPEN_INFERENCE}/ModelStreamInfer": READ,
    f"/{OPEN_INFERENCE}/RepositoryIndex": READ,
}
