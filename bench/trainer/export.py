"""Size, speed and quality of exported models, against the 32-bit source, on one thread of this CPU.

A network 256-1024-1024-512-1 is trained on synthetic rows. The formats are converted as EXPORT jobs convert
them; metrics are those of 20,000 rows that took no part in training or in the ranges of activations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import nn

from bench import measure
from flywheel_common.arrays import Floats
from flywheel_job.export.comparison import compare, fit_platt_to
from flywheel_job.export.graphs import converted
from flywheel_job.export.params import INT8_DYNAMIC, INT8_STATIC
from flywheel_job.export.speed import cpu_name
from flywheel_job.model_file import BINARY
from flywheel_job.scoring import INPUT, SCORE, Tensor, onnx_scores, open_session

SIZES = (256, 1024, 1024, 512, 1)
TRAIN_ROWS, CALIBRATION_ROWS, EVALUATION_ROWS = 40_000, 2_000, 20_000
EPOCHS, BATCH = 3, 256
ROUNDS = 30
CALLS = {1: 200, 64: 20}
"""Rows of a call → calls of a round."""
SPEEDS = {1: 1.8, 64: 3.0}
"""Rows of a call → how many times faster an 8-bit model must be."""


def rows_and_labels(count: int, seed: int) -> tuple[Tensor, Floats]:
    """Normal inputs; the probability of a label depends on 40 of them, alone and in pairs."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, SIZES[0])).astype(np.float32)
    z = x[:, :20].sum(axis=1) / 3 + (x[:, 20:30] * x[:, 30:40]).sum(axis=1) / 2
    labels = rng.random(count) < 1 / (1 + np.exp(-z))
    return x, labels.astype(np.float64)


def trained() -> bytes:
    """The ONNX graph of the network."""
    torch.manual_seed(0)
    x, labels = rows_and_labels(TRAIN_ROWS, 1)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(SIZES):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    network = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4, weight_decay=0.05)
    rows, wanted = torch.from_numpy(x), torch.from_numpy(labels).float()
    for _ in range(EPOCHS):
        for batch in torch.randperm(TRAIN_ROWS).split(BATCH):
            loss = nn.functional.binary_cross_entropy_with_logits(network(rows[batch])[:, 0], wanted[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return to_graph(network)


def to_graph(network: nn.Sequential) -> bytes:
    """INPUT `[rows, 256]` → SCORE `[rows, 1]`, a probability."""
    nodes, constants, value = [], [], INPUT
    linears = [layer for layer in network if isinstance(layer, nn.Linear)]
    for number, layer in enumerate(linears):
        weights = layer.weight.detach().numpy().T
        for name, array in ((f"w{number}", weights), (f"b{number}", layer.bias.detach().numpy())):
            constants.append(helper.make_tensor(name, TensorProto.FLOAT, array.shape, array.ravel()))
        nodes.append(helper.make_node("Gemm", [value, f"w{number}", f"b{number}"], [f"g{number}"]))
        value = f"g{number}"
        if layer is not linears[-1]:
            nodes.append(helper.make_node("Relu", [value], [f"r{number}"]))
            value = f"r{number}"
    nodes.append(helper.make_node("Sigmoid", [value], [SCORE]))
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])]
        for name, width in ((INPUT, SIZES[0]), (SCORE, 1))
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "network", *ends, constants), opset_imports=[helper.make_opsetid("", 18)]
    )
    model.ir_version = 9
    content: bytes = model.SerializeToString()
    return content


def run(only: str) -> Iterable[measure.Row]:
    names = ("INT8 dynamic", "INT8 static", "INT8 static per channel")
    if not any(only in f"export {name}" or name in only for name in names):
        return
    source = trained()
    fitting, _ = rows_and_labels(CALIBRATION_ROWS, 2)
    measure.console.print(f"  {cpu_name()}, one thread")
    for name in names:
        format_ = INT8_DYNAMIC if "dynamic" in name else INT8_STATIC
        exported = converted(source, format_, fitting, per_channel="channel" in name)
        yield from rows_of(name, source, exported, fitting)


def rows_of(name: str, source: bytes, exported: bytes, fitting: Tensor) -> Iterator[measure.Row]:
    ratio = len(source) / len(exported)
    yield measure.row(
        f"{name}: 1 / size",
        ratio,
        "of the source",
        measure.at_least(3.9, of_value=True),
        "float32",
        len(source) / 1e6,
        ratio,
    )
    checking, labels = rows_and_labels(EVALUATION_ROWS, 3)
    for size, bound in SPEEDS.items():
        pairs = measure.alternating(
            ROUNDS, calls_per_second(exported, checking[:size]), calls_per_second(source, checking[:size])
        )
        yield measure.compared(
            f"{name}: calls with {size} rows", "calls/s", "float32", pairs, measure.at_least(bound)
        )
    platt = fit_platt_to(scores(source, fitting), scores(exported, fitting))
    found = compare(BINARY, labels, scores(source, checking), platt.apply(scores(exported, checking)), 0.5)
    auc = found.source["auc"]
    yield measure.row(
        f"{name}: loss of AUC",
        -100 * found.increase("auc"),
        "points",
        measure.at_most(0.2, of_value=True),
        "AUC of float32",
        auc,
    )
    yield measure.row(f"{name}: other decisions", 100 * found.flip_share, "% of the rows", None)
    yield measure.row(
        f"{name}: increase of the log-loss",
        found.increase("log_loss"),
        "nats",
        None,
        "log-loss of float32",
        found.source["log_loss"],
    )


def scores(graph: bytes, rows: Tensor) -> Floats:
    return np.asarray(onnx_scores(open_session(graph), rows, batch=64), dtype=np.float64)


def calls_per_second(graph: bytes, rows: Tensor) -> Callable[[], float]:
    session, feed = open_session(graph), {INPUT: np.ascontiguousarray(rows)}
    count = CALLS[len(rows)]

    def measured() -> float:
        start = time.perf_counter()
        for _ in range(count):
            session.run([SCORE], feed)
        return count / (time.perf_counter() - start)

    return measured
