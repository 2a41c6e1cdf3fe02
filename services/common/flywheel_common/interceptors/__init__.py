"""What stands between the wire and a servicer, fused into one wrapper per method (docs/adr/0020)."""

from flywheel_common.interceptors.admission import Admission
from flywheel_common.interceptors.pipeline import Pipeline

__all__ = ["Admission", "Pipeline"]
