"""Registers the model that a run has logged."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import EncodeError, Message

from flywheel.catalog_calls import CatalogCalls
from flywheel.connection import PORTS
from flywheel.event_loop import LoopThread
from flywheel.onnx_weights import ModelTooLarge, may_be_in_parts, one_file, weight_files
from flywheel.registration import RegistrationCalls
from flywheel.tracking.endpoint import Endpoint
from flywheel.tracking.errors import TrackingError
from flywheel_common.signature import Signature, problems
from flywheel_common.signature_messages import signature_from_message, signature_message


class _Calls(CatalogCalls, RegistrationCalls):
    """What registers a version and sets its aliases."""


def described_model(
    model: str | Path | bytes | Any, signature: Signature | Message | None
) -> tuple[Path | bytes, Message | None]:
    """The model as a file or as bytes that have all weights, and its signature as a message.

    Raises OSError, and TrackingError for a signature that is not valid, weights that cannot be read or are
    too large for one file, and a model that is neither a path nor bytes nor a message.
    """
    if isinstance(signature, Signature):
        found = problems(signature)
        if found:
            raise TrackingError(f"The signature is not valid: {' '.join(found)}")
        signature = signature_message(signature)
    return _with_weights(Path(model) if isinstance(model, str) else model), signature


def _with_weights(model: Any) -> Path | bytes:
    try:
        if isinstance(model, Message):
            model = model.SerializeToString()
        if not isinstance(model, Path | bytes):
            raise TrackingError(f"{type(model).__name__} is no model: give a path, bytes or a ModelProto.")
        if not may_be_in_parts(model):
            return model
        if isinstance(model, Path):
            return one_file(model)
        for name in weight_files(model):
            raise TrackingError(f"The model has weights in the file {name!r}: give the path of the model.")
    except ImportError as error:
        raise TrackingError("A model with weights in other files needs flywheel[onnx].") from error
    except (EncodeError, ModelTooLarge) as error:
        raise TrackingError(f"{error} Log the folder with its files by log_artifact instead.") from error
    except ValueError as error:
        raise TrackingError(str(error)) from error
    return model


def register_model(
    run: str,
    endpoint: Endpoint,
    model: str,
    content: bytes | Path,
    signature: Any,
    aliases: Sequence[str],
    options: Mapping[str, Any],
) -> str:
    """Registers a version with the token and TLS of the run; returns its full name."""
    addresses = {service: options[service] for service in PORTS if service in options}
    others = {key: value for key, value in options.items() if key not in PORTS}
    if signature is not None:
        others["signature"] = signature_from_message(signature)

    async def register(file: Path) -> str:
        project = run.split("/")[1]
        async with _Calls(project, token=endpoint.token, tls=endpoint.tls, **addresses) as calls:
            version = await calls.register(model, file, training_run=run, **others)
            for alias in aliases:
                await calls.set_alias(alias, version.name, reason=f"logged by {run}")
            return version.name

    loop = LoopThread()
    try:
        if not isinstance(content, bytes):
            return loop.run(register(content))
        with tempfile.TemporaryDirectory(prefix="flywheel-") as folder:
            file = Path(folder) / "model.onnx"
            file.write_bytes(content)
            return loop.run(register(file))
    finally:
        loop.close()
