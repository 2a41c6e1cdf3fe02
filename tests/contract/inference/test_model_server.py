"""Contract tests of the model server, in memory and with Triton."""

from __future__ import annotations

import hashlib
import tempfile
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flywheel_common.arrays import Array
from flywheel_common.errors import DeadlineExceeded, FailedPrecondition, NotFound, Unavailable
from flywheel_common.signature import (
    FLOAT64,
    INT64,
    InputSpec,
    OutputKind,
    OutputSpec,
    Signature,
    TensorSpec,
)
from flywheel_inference.fakes.model_server import MemoryModelServer
from flywheel_inference.models.model_file import ModelFile
from flywheel_inference.models.ports import ModelControl
from flywheel_inference.models.triton_config import load_request
from flywheel_inference.store.triton.model_server import TritonModelServer
from tests.support.builders.inference import expected_score, onnx_model, run_onnx
from tests.support.builders.kinds import KINDS, mixed_binary
from tests.support.peers.inference import NO_SERVER

TIMEOUT = 60.0
W, V = (0.5, -0.25, 1.0), (-1.0, 0.5, 0.25)
SCORE = OutputSpec()
ROWS = np.array([[1, 2, 0], [0.5, -1, 2], [np.nan, 1, -1]], np.float32)


@pytest.fixture(params=["memory", "triton"])
def address(request: pytest.FixtureRequest) -> str:
    """Address of Triton; empty for the in-memory adapter."""
    return str(request.getfixturevalue("triton").grpc_url) if request.param == "triton" else ""


@pytest.fixture
async def models(address: str) -> AsyncIterator[ModelControl]:
    if not address:
        yield MemoryModelServer(run_onnx)
        return
    triton = TritonModelServer(address)
    yield triton
    await triton.close()


@pytest.fixture
def name() -> str:
    """A model name that no other test uses."""
    return f"test.late.v{uuid.uuid4().hex[:8]}"


async def load(models: ModelControl, name: str, file: bytes, inputs: int = 3) -> str:
    """Loads a model file with one tensor; returns its digest."""
    signature = Signature(tuple(InputSpec(f"a__x{i}", FLOAT64) for i in range(inputs)))
    return await load_with(models, name, file, signature, np.zeros((1, 1), np.float32))


async def load_with(models: ModelControl, name: str, file: bytes, signature: Signature, output: Array) -> str:
    """Loads a model file with a signature and an output of this type and shape; returns its digest."""
    digest = hashlib.sha256(file).hexdigest()
    config, files = load_request(name, signature, output, digest, backend="python")
    with tempfile.TemporaryDirectory() as folder:
        model = ModelFile(Path(folder) / "model.onnx", digest)
        model.path.write_bytes(file)
        await models.load(name, config, files, model, TIMEOUT)
    return digest


def scores(weights: tuple[float, ...], bias: float = 0.0) -> list[float]:
    return [expected_score(weights, bias, row) for row in ROWS.tolist()]


async def answer(models: ModelControl, name: str, rows: npt.NDArray[np.float32] = ROWS) -> Any:
    found = await models.infer(name, {"INPUT": rows}, SCORE, TIMEOUT)
    assert (found.dtype, found.shape) == (np.float32, (len(rows), 1))
    return pytest.approx(found[:, 0].tolist(), abs=1e-6)


async def test_a_model_that_is_not_loaded_is_not_found(models: ModelControl, name: str) -> None:
    assert (False, "") == (await models.is_loaded(name, TIMEOUT), await models.loaded_digest(name, TIMEOUT))
    with pytest.raises(NotFound) as absent:
        await models.infer(name, {"INPUT": ROWS}, SCORE, TIMEOUT)
    assert "MODEL_NOT_LOADED" == absent.value.reason
    await models.unload(name, TIMEOUT)


async def test_a_loaded_model_scores_rows_in_their_order(models: ModelControl, name: str) -> None:
    digest = await load(models, name, onnx_model(W, 0.5))
    assert (True, digest) == (
        await models.is_loaded(name, TIMEOUT),
        await models.loaded_digest(name, TIMEOUT),
    )
    assert scores(W, 0.5) == await answer(models, name)
    assert scores(W, 0.5)[1:2] == await answer(models, name, ROWS[1:2])
    many = np.repeat(ROWS, 300, axis=0)
    assert [score for score in scores(W, 0.5) for _ in range(300)] == await answer(models, name, many)
    await models.unload(name, TIMEOUT)


async def test_models_are_separate_by_name_until_they_are_unloaded(models: ModelControl, name: str) -> None:
    other = f"{name}b"
    await load(models, name, onnx_model(W, 0.0))
    await load(models, other, onnx_model(V, 0.0))
    assert scores(W) == await answer(models, name)
    assert scores(V) == await answer(models, other)
    await models.unload(name, TIMEOUT)
    assert [False, True] == [await models.is_loaded(n, TIMEOUT) for n in (name, other)]
    with pytest.raises(NotFound):
        await models.infer(name, {"INPUT": ROWS}, SCORE, TIMEOUT)
    assert scores(V) == await answer(models, other)
    await models.unload(other, TIMEOUT)


async def test_loading_another_file_replaces_the_model(models: ModelControl, name: str) -> None:
    digests = [await load(models, name, onnx_model(weights, 0.0)) for weights in (W, V)]
    assert scores(V) == await answer(models, name)
    assert digests[1] == await models.loaded_digest(name, TIMEOUT)
    assert digests[0] == await load(models, name, onnx_model(W, 0.0))
    assert scores(W) == await answer(models, name)
    await models.unload(name, TIMEOUT)


async def test_an_invalid_file_is_refused_and_the_loaded_model_stays(models: ModelControl, name: str) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        await load(models, name, b"no model")
    assert "MODEL_REFUSED" == refused.value.reason
    assert not await models.is_loaded(name, TIMEOUT)
    await load(models, name, onnx_model(W, 0.0))
    with pytest.raises(FailedPrecondition):
        await load(models, name, b"no model")
    assert scores(W) == await answer(models, name)
    await models.unload(name, TIMEOUT)


async def test_rows_with_a_wrong_number_of_inputs_are_refused(models: ModelControl, name: str) -> None:
    await load(models, name, onnx_model(W, 0.0))
    with pytest.raises(FailedPrecondition) as refused:
        await models.infer(name, {"INPUT": ROWS[:, :2].copy()}, SCORE, TIMEOUT)
    assert "MODEL_REFUSED" == refused.value.reason
    assert scores(W) == await answer(models, name)
    await models.unload(name, TIMEOUT)


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_model_reproduces_onnx_runtime(
    models: ModelControl, name: str, kind: str
) -> None:
    model = KINDS[kind]()
    await load_with(models, name, model.file, model.signature, model.output)
    output = model.signature.output
    rows = len(model.output)
    # The second column of [rows, 2] is the probability of a BINARY model; [rows] becomes [rows, 1].
    expected = model.output[:, 1:] if kind == "binary" else model.output.reshape(rows, output.width)
    found = await models.infer(name, model.tensors, output, TIMEOUT)
    assert (found.dtype, found.shape) == (model.output.dtype, (rows, output.width))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    order = np.array([2, 0])
    part = {tensor: values[order] for tensor, values in model.tensors.items()}
    np.testing.assert_allclose(
        await models.infer(name, part, output, TIMEOUT), expected[order], rtol=0, atol=1e-6
    )
    await models.unload(name, TIMEOUT)


@pytest.mark.parametrize(
    ("kind", "output"),
    [
        ("multiclass", OutputSpec(OutputKind.MULTICLASS, "probabilities", class_names=("a", "b"))),
        ("multiclass", OutputSpec(OutputKind.BINARY, "probabilities")),
        ("vector", OutputSpec(OutputKind.VECTOR, "embedding", size=3)),
        ("regression", OutputSpec(OutputKind.VECTOR, "minutes", size=2)),
    ],
)
async def test_an_output_of_another_shape_is_refused(
    models: ModelControl, name: str, kind: str, output: OutputSpec
) -> None:
    model = KINDS[kind]()
    await load_with(models, name, model.file, model.signature, model.output)
    with pytest.raises(FailedPrecondition) as refused:
        await models.infer(name, model.tensors, output, TIMEOUT)
    assert refused.value.reason == "WRONG_SHAPE"
    await models.unload(name, TIMEOUT)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_model_whose_output_has_another_type_is_not_loaded(
    models: ModelControl, name: str, kind: str
) -> None:
    model = KINDS[kind]()
    other = model.output.astype(np.float64 if model.output.dtype == np.float32 else np.float32)
    with pytest.raises(FailedPrecondition) as refused:
        await load_with(models, name, model.file, model.signature, other)
    assert refused.value.reason == "MODEL_REFUSED"
    assert not await models.is_loaded(name, TIMEOUT)


async def test_a_model_whose_inputs_have_other_types_is_not_loaded(models: ModelControl, name: str) -> None:
    model = mixed_binary()
    tensors = tuple(
        TensorSpec(t.name, FLOAT64 if t.data_type == INT64 else t.data_type, t.shape)
        for t in model.signature.tensors
    )
    signature = replace(model.signature, tensors=tensors)
    with pytest.raises(FailedPrecondition) as refused:
        await load_with(models, name, model.file, signature, model.output)
    assert refused.value.reason == "MODEL_REFUSED"


async def assert_unavailable(models: ModelControl) -> None:
    """Asserts that every call raises MODEL_SERVER_DOWN."""
    for call in (
        load(models, "late", onnx_model(W, 0.0)),
        models.unload("late", TIMEOUT),
        models.check_live(TIMEOUT),
        models.is_loaded("late", TIMEOUT),
        models.loaded_digest("late", TIMEOUT),
        models.infer("late", {"INPUT": ROWS}, SCORE, TIMEOUT),
    ):
        with pytest.raises(Unavailable) as down:
            await call
        assert "MODEL_SERVER_DOWN" == down.value.reason


async def test_every_call_raises_unavailable_when_the_server_is_down() -> None:
    memory, triton = MemoryModelServer(run_onnx), TritonModelServer(NO_SERVER)
    memory.down = True
    await assert_unavailable(memory)
    await assert_unavailable(triton)
    await triton.close()


async def test_infer_raises_deadline_exceeded_after_its_timeout(triton: Any, name: str) -> None:
    models = TritonModelServer(triton.grpc_url)
    await load(models, name, onnx_model(W, 0.0))
    with pytest.raises(DeadlineExceeded) as late:
        await models.infer(name, {"INPUT": np.repeat(ROWS, 300, axis=0)}, SCORE, 1e-6)
    assert "MODEL_TIMEOUT" == late.value.reason
    assert scores(W) == await answer(models, name)
    await models.unload(name, TIMEOUT)
    await models.close()
