"""One law for the model server, in memory and in Triton. What Predict makes of it: test_laws_at_the_edge.py."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flywheel_common.errors import DeadlineExceeded, FailedPrecondition, NotFound, Unavailable
from flywheel_inference.fakes.model_server import MemoryModels
from flywheel_inference.models.ports import ModelControl
from flywheel_inference.models.triton_config import load_request
from flywheel_inference.store.triton.model_server import Triton
from tests.integration.inference.gateway_peers import NOBODY, expected_score, onnx_model, run_onnx

PATIENT = 60.0
W, V = (0.5, -0.25, 1.0), (-1.0, 0.5, 0.25)
ROWS = np.array([[1, 2, 0], [0.5, -1, 2], [np.nan, 1, -1]], np.float32)


@pytest.fixture(params=["memory", "triton"])
def address(request: pytest.FixtureRequest) -> str:
    """Empty for what is in memory."""
    return str(request.getfixturevalue("triton").grpc_url) if request.param == "triton" else ""


@pytest.fixture
async def models(address: str) -> AsyncIterator[ModelControl]:
    if not address:
        yield MemoryModels(run_onnx)
        return
    triton = Triton(address)
    yield triton
    await triton.close()


@pytest.fixture
def name() -> str:
    """Of a model that no other test has."""
    return f"test.late.v{uuid.uuid4().hex[:8]}"


async def load(models: ModelControl, name: str, file: bytes, inputs: int = 3) -> str:
    """The digest under which it was loaded."""
    digest = hashlib.sha256(file).hexdigest()
    config, files = load_request(name, inputs, file, digest, backend="python")
    await models.load(name, config, files, PATIENT)
    return digest


def scores(weights: tuple[float, ...], bias: float = 0.0) -> list[float]:
    return [expected_score(weights, bias, row) for row in ROWS.tolist()]


async def answer(models: ModelControl, name: str, rows: npt.NDArray[np.float32] = ROWS) -> Any:
    return pytest.approx((await models.infer(name, rows, PATIENT)).tolist(), abs=1e-6)


async def test_what_is_not_loaded_answers_nobody(models: ModelControl, name: str) -> None:
    assert (False, "") == (await models.is_loaded(name, PATIENT), await models.loaded_digest(name, PATIENT))
    with pytest.raises(NotFound) as absent:
        await models.infer(name, ROWS, PATIENT)
    assert "MODEL_NOT_LOADED" == absent.value.reason
    await models.unload(name, PATIENT)


async def test_a_loaded_model_scores_rows_in_their_order(models: ModelControl, name: str) -> None:
    digest = await load(models, name, onnx_model(W, 0.5))
    assert (True, digest) == (
        await models.is_loaded(name, PATIENT),
        await models.loaded_digest(name, PATIENT),
    )
    assert scores(W, 0.5) == await answer(models, name)
    assert scores(W, 0.5)[1:2] == await answer(models, name, ROWS[1:2])
    many = np.repeat(ROWS, 300, axis=0)
    assert [score for score in scores(W, 0.5) for _ in range(300)] == await answer(models, name, many)
    await models.unload(name, PATIENT)


async def test_models_answer_under_their_own_names_until_they_are_unloaded(
    models: ModelControl, name: str
) -> None:
    other = f"{name}b"
    await load(models, name, onnx_model(W, 0.0))
    await load(models, other, onnx_model(V, 0.0))
    assert scores(W) == await answer(models, name)
    assert scores(V) == await answer(models, other)
    await models.unload(name, PATIENT)
    assert [False, True] == [await models.is_loaded(n, PATIENT) for n in (name, other)]
    with pytest.raises(NotFound):
        await models.infer(name, ROWS, PATIENT)
    assert scores(V) == await answer(models, other)
    await models.unload(other, PATIENT)


async def test_another_file_under_a_name_takes_its_place(models: ModelControl, name: str) -> None:
    digests = [await load(models, name, onnx_model(weights, 0.0)) for weights in (W, V)]
    assert scores(V) == await answer(models, name)
    assert digests[1] == await models.loaded_digest(name, PATIENT)
    assert digests[0] == await load(models, name, onnx_model(W, 0.0))
    assert scores(W) == await answer(models, name)
    await models.unload(name, PATIENT)


async def test_a_file_that_is_no_model_is_refused_and_what_was_loaded_goes_on(
    models: ModelControl, name: str
) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        await load(models, name, b"no model")
    assert "MODEL_REFUSED" == refused.value.reason
    assert not await models.is_loaded(name, PATIENT)
    await load(models, name, onnx_model(W, 0.0))
    with pytest.raises(FailedPrecondition):
        await load(models, name, b"no model")
    assert scores(W) == await answer(models, name)
    await models.unload(name, PATIENT)


async def test_rows_that_the_model_does_not_take_are_refused(models: ModelControl, name: str) -> None:
    await load(models, name, onnx_model(W, 0.0))
    with pytest.raises(FailedPrecondition) as refused:
        await models.infer(name, ROWS[:, :2].copy(), PATIENT)
    assert "MODEL_REFUSED" == refused.value.reason
    assert scores(W) == await answer(models, name)
    await models.unload(name, PATIENT)


async def away(models: ModelControl) -> None:
    """Every call says that nobody answers."""
    for call in (
        load(models, "late", onnx_model(W, 0.0)),
        models.unload("late", PATIENT),
        models.is_loaded("late", PATIENT),
        models.loaded_digest("late", PATIENT),
        models.infer("late", ROWS, PATIENT),
    ):
        with pytest.raises(Unavailable) as down:
            await call
        assert "MODEL_SERVER_DOWN" == down.value.reason


async def test_a_model_server_that_is_away_is_unavailable() -> None:
    memory, triton = MemoryModels(run_onnx), Triton(NOBODY)
    memory.down = True
    await away(memory)
    await away(triton)
    await triton.close()


async def test_a_model_server_that_takes_too_long_is_given_up(triton: Any, name: str) -> None:
    models = Triton(triton.grpc_url)
    await load(models, name, onnx_model(W, 0.0))
    with pytest.raises(DeadlineExceeded) as late:
        await models.infer(name, np.repeat(ROWS, 300, axis=0), 1e-6)
    assert "MODEL_TIMEOUT" == late.value.reason
    assert scores(W) == await answer(models, name)
    await models.unload(name, PATIENT)
    await models.close()
