"""Checks one ONNX file and runs it on rows; a program of its own that imports nothing of the registry.

`worker.py FOLDER` reads `request.json` ({"model", "output", "rows": {tensor: file}, "memory_bytes",
"cpu_seconds", "file_bytes"}) and writes `report.json`, and the output to `output.npy`. The limits apply
before the file is opened.
"""

import ctypes
import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that this process gets when its parent dies."""
TYPES = {1: "FLOAT32", 7: "INT64", 8: "STRING", 9: "BOOL", 11: "FLOAT64"}
"""Element type of ONNX → data type of a tensor; every other type keeps its name in ONNX."""


def main(folder: Path) -> None:
    """Write the report of the file that the request names."""
    # The registry may be killed before it kills this process.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    request = json.loads((folder / "request.json").read_bytes())
    for limit, value in (
        (resource.RLIMIT_AS, request["memory_bytes"]),
        (resource.RLIMIT_CPU, request["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, request["file_bytes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    (folder / "report.json").write_text(json.dumps(_report(folder, request)))


def _report(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    import onnx

    file = str(folder / request["model"])
    try:
        onnx.checker.check_model(file)
        model = onnx.load(file, load_external_data=False)
        graph = {
            "inputs": _tensors(model.graph.input, {one.name for one in model.graph.initializer}),
            "outputs": _tensors(model.graph.output, set()),
        }
    except Exception as error:  # noqa: BLE001 - libraries raise any class; each is the file's problem
        return {"problem": f"{type(error).__name__}: {error}"}
    try:
        _run(folder, file, request)
    except Exception as error:  # noqa: BLE001
        return {**graph, "run_problem": f"{type(error).__name__}: {error}"}
    return graph


def _tensors(values: Any, without: set[str]) -> list[list[Any]]:
    import onnx

    found: list[list[Any]] = []
    for value in values:
        if value.name in without:
            continue
        if value.type.WhichOneof("value") != "tensor_type":
            found.append([value.name, str(value.type.WhichOneof("value")), None])
            continue
        tensor = value.type.tensor_type
        shape = None
        if tensor.HasField("shape"):
            shape = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        kind = TYPES.get(tensor.elem_type) or onnx.TensorProto.DataType.Name(tensor.elem_type)
        found.append([value.name, kind, shape])
    return found


def _run(folder: Path, file: str, request: dict[str, Any]) -> None:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    rows = {
        name: np.load(folder / rows_file, allow_pickle=False) for name, rows_file in request["rows"].items()
    }
    texts = {name: rows[name].astype(object) for name in rows if rows[name].dtype.kind == "U"}
    (output,) = session.run([request["output"]], {**rows, **texts})
    np.save(folder / "output.npy", np.asarray(output), allow_pickle=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
