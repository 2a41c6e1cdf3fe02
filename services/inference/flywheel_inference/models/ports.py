"""Ports for models: artifacts, feature set contracts, the local cache and the model server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Protocol

from flywheel_common.arrays import Array
from flywheel_common.scoring.input_tensors import Tensors
from flywheel_common.signature import OutputSpec
from flywheel_inference.models.model_file import ModelFile
from flywheel_inference.releases.release import ArtifactSpec, FeatureSetContract


class ArtifactSource(Protocol):
    """Downloads artifacts by model version and file name, in pieces of at most a few MiB. The bytes are not
    verified; the piece that exceeds the declared size is not yielded.
    Raises NotFound, Unavailable, DataLoss WRONG_SIZE."""

    def download(
        self, model_version: str, artifact: ArtifactSpec, timeout: float
    ) -> AsyncGenerator[bytes]: ...


class FeatureSetContracts(Protocol):
    """Reads what a feature set needs from a caller. Raises NotFound, Unavailable."""

    async def contract(self, feature_set: str, timeout: float = 5.0) -> FeatureSetContract: ...


class ArtifactDraft(Protocol):
    """An artifact that is being written. Blocking; raises OSError. `sha256`: digest of its bytes so far."""

    @property
    def sha256(self) -> str: ...

    def write(self, piece: bytes) -> None:
        """Appends to it."""
        ...

    def keep(self) -> Path:
        """Stores it under its digest, complete or not at all; returns its file."""
        ...

    def discard(self) -> None:
        """Deletes it unless it is kept."""
        ...


class ArtifactCache(Protocol):
    """Local copies of contracts by feature set and artifacts by digest.

    An artifact is verified when it is read: one that is absent or does not have its digest is None.
    Model files are written and verified in pieces and never held in memory; specifications are small.
    Blocking; raises OSError.
    """

    def load_artifact(self, sha256: str) -> bytes | None: ...
    def save_artifact(self, sha256: str, content: bytes) -> None: ...
    def artifact_file(self, sha256: str) -> Path | None: ...
    def draft_artifact(self) -> ArtifactDraft: ...
    def load_contract(self, feature_set: str) -> FeatureSetContract | None: ...
    def save_contract(self, contract: FeatureSetContract) -> None: ...


class ModelHolds(Protocol):
    """Which gateways use a model of the model server that they share. A gateway unloads a model only when no
    other gateway holds it.

    A gateway that dies without dropping its holds loses them after a time. Concurrent calls are safe.
    """

    async def hold(self, model: str) -> None:
        """Holds the model, repeatedly until it is dropped. Does not fail when the holds cannot be stored,
        because a model must be loadable then. Raises Unavailable MODEL_BEING_UNLOADED; the model is held all
        the same, so that the next call succeeds once the other gateway has finished."""
        ...

    async def drop(self, model: str) -> bool:
        """Drops this gateway's hold. True: no other gateway holds the model; then `hold` of every other
        gateway is refused until `unloaded` or a time limit. Raises Unavailable HOLDS_UNKNOWN."""
        ...

    async def unloaded(self, model: str) -> None:
        """Ends the unloading that `drop` has begun. Does not fail."""
        ...

    async def run(self) -> None:
        """Renews the holds until cancelled."""
        ...


class ModelServer(Protocol):
    """Runs loaded models. Raises NotFound MODEL_NOT_LOADED, Unavailable MODEL_SERVER_DOWN, DeadlineExceeded,
    FailedPrecondition MODEL_REFUSED, WRONG_SHAPE."""

    async def infer(self, name: str, tensors: Tensors, output: OutputSpec, timeout: float) -> Array:
        """Named input tensors [rows, …] → float32 or float64 [rows, width] of the output
        (`output_values`), in the order of the rows."""
        ...


class ModelControl(ModelServer, Protocol):
    """Loads and unloads models of the model server. Raises Unavailable MODEL_SERVER_DOWN,
    DeadlineExceeded."""

    async def load(
        self, name: str, config: str, files: Mapping[str, bytes], model: ModelFile, timeout: float
    ) -> None:
        """Loads a model, or replaces the one of that name atomically. `files`: the small ones beside the
        model. Raises FailedPrecondition MODEL_REFUSED, DataLoss DIGEST_MISMATCH when the model file does not
        have its digest, and Unavailable; the loaded model stays then."""
        ...

    async def unload(self, name: str, timeout: float) -> None:
        """Unloads a model. Does nothing when it is not loaded."""
        ...

    async def check_live(self, timeout: float) -> None:
        """Returns when the server answers."""
        ...

    async def is_loaded(self, name: str, timeout: float) -> bool: ...

    async def loaded_digest(self, name: str, timeout: float) -> str:
        """The digest of the loaded model's file (`triton_config.DIGEST`), empty when it is not loaded."""
        ...
