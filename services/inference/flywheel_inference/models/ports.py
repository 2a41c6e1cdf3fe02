"""TODO docstring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from flywheel_inference.releases.release import ArtifactSpec, Contract


class ArtifactSource(Protocol):
    """Bytes by version and file name, not yet checked. Raises NotFound, Unavailable, DataLoss."""

    async def download(self, model_version: str, artifact: ArtifactSpec, timeout: float) -> bytes: ...


class Contracts(Protocol):
    """What a feature set needs from a caller. Raises NotFound, Unavailable."""

    async def contract(self, feature_set: str, timeout: float = 5.0) -> Contract: ...


class Kept(Protocol):
    """What was kept before: contracts by feature set, artifacts by digest. An artifact is verified when it is read: what is absent or
    no longer has its digest is None. Blocking; raises OSError."""

    def load_artifact(self, sha256: str) -> bytes | None: ...
    def save_artifact(self, sha256: str, content: bytes) -> None: ...
    def load_contract(self, feature_set: str) -> Contract | None: ...
    def save_contract(self, contract: Contract) -> None: ...


class ModelControl(Protocol):
    """The model server's control side. `load` replaces a model of the same name at once and whole, or raises FailedPrecondition
    MODEL_REFUSED. `unload` of what is not loaded does nothing. `loaded_digest` is that of the model file (`triton_model.DIGEST`),
    empty when it is not loaded. `infer` raises NotFound MODEL_NOT_LOADED. All raise Unavailable MODEL_SERVER_DOWN and
    DeadlineExceeded."""

    async def load(self, name: str, config: str, files: Mapping[str, bytes], timeout: float) -> None: ...
    async def unload(self, name: str, timeout: float) -> None: ...
    async def is_loaded(self, name: str, timeout: float) -> bool: ...
    async def loaded_digest(self, name: str, timeout: float) -> str: ...
    async def infer(
        self, name: str, tensor: npt.NDArray[np.float32], timeout: float
    ) -> npt.NDArray[np.float32]: ...


class ModelServer(Protocol):
    """Runs a loaded model. Raises Unavailable, NotFound (not loaded) or DeadlineExceeded."""

    async def infer(
        self, name: str, tensor: npt.NDArray[np.float32], timeout: float
    ) -> npt.NDArray[np.float32]:
        """[rows, inputs] → [rows] raw scores."""
        ...
