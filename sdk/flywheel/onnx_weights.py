"""ONNX models whose weights are in files of their own, as one file."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

MAX_BYTES = (1 << 31) - 1
"""A protobuf message, and so an ONNX file, is smaller than 2 GiB."""


class ModelTooLarge(ValueError):
    """A model that does not fit into one ONNX file."""


_LOCATION = b"\n\x08location"
"""The key under which a tensor has the path of its file, as protobuf writes it."""


def may_be_in_parts(model: Path | bytes) -> bool:
    """False: an ONNX file, or a file with this content, has all weights itself. It needs no package for ONNX,
    and reads a file without a copy in memory. Raises OSError."""
    if isinstance(model, bytes):
        return _LOCATION in model
    with model.open("rb") as file:
        if not model.stat().st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(_LOCATION) >= 0


def weight_files(content: bytes) -> list[str]:
    """The paths of the files with weights, relative to the folder of an ONNX file with this content.

    Raises ValueError if one is outside of the folder, or all together do not fit into one file.
    """
    model = _parsed(content)
    found: dict[str, None] = {}
    size = len(content)
    for tensor in _external(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        name = entries.get("location", "")
        path = PurePosixPath(name)
        if not path.name or path.is_absolute() or ".." in path.parts or "\\" in name:
            raise ValueError(f"The weights of {tensor.name} are in {name!r}, outside of the model's folder.")
        found[name] = None
        size += int(entries.get("length") or 0)
    if found and size > MAX_BYTES:
        raise _too_large(size)
    return list(found)


def one_file(file: Path) -> bytes:
    """The content of an ONNX file with the weights that are in other files of its folder.

    Raises ImportError without the extra `flywheel[onnx]`, ValueError as `weight_files` does and for weights
    that cannot be read, OSError.
    """
    content = file.read_bytes()
    names = weight_files(content)
    if not names:
        return content
    from onnx.external_data_helper import load_external_data_for_model

    size = len(content) + sum((file.parent / name).stat().st_size for name in names)
    if size > MAX_BYTES:
        raise _too_large(size)
    model = _parsed(content)
    try:
        load_external_data_for_model(model, str(file.parent))
    except Exception as error:
        raise ValueError(f"The weights of {file} cannot be read: {error}") from error
    merged: bytes = model.SerializeToString()
    return merged


def _too_large(size: int) -> ModelTooLarge:
    return ModelTooLarge(
        f"The model has {size} bytes with its weights: one ONNX file has at most {MAX_BYTES}."
    )


def _parsed(content: bytes) -> Any:
    """The model; an empty one if the content is none, about which ONNX Runtime says more."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.ModelProto.FromString(content)
    except DecodeError:
        return onnx.ModelProto()


def _external(message: Any) -> Iterator[Any]:
    """The tensors of a message whose values are in other files; subgraphs and functions have some too."""
    from onnx import TensorProto

    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for one in [value] if hasattr(value, "ListFields") else value:
            if not isinstance(one, TensorProto):
                yield from _external(one)
            elif one.data_location == TensorProto.EXTERNAL:
                yield one
