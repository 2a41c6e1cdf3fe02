"""Who may call what (jwt mode)."""

from __future__ import annotations

from flywheel_common.grpc.auth import READ, WRITE, Permissions

SERVICE = "flywheel.inference.v1.InferenceService"

PERMISSIONS: Permissions = {
    f"/{SERVICE}/Predict": READ,
    f"/{SERVICE}/BatchPredict": READ,
    f"/{SERVICE}/StreamPredict": READ,
    f"/{SERVICE}/RecordOutcome": WRITE,
    f"/{SERVICE}/GetServingStatus": READ,
}
