"""User code: unpacking its archive, loading its function, and how its failures are reported."""

from __future__ import annotations

import hashlib
import importlib
import io
import platform
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from pyarrow import fs

from flywheel_job import objects
from flywheel_job.errors import InvalidFunction, InvalidParams, InvalidSource, TrainingFailed
from flywheel_job.launch import DataSet, LaunchSpec, Resources, Source
from flywheel_job.outcome import Outcome
from flywheel_job.params import parse_params
from flywheel_job.source.archive import unpack
from flywheel_job.source.function import load_function
from tests.support.training_job import launch_spec, run_here


@pytest.fixture(autouse=True)
def imports() -> Iterator[None]:
    """Modules and paths that a test imports are forgotten afterwards."""
    modules, paths = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = paths
    for name in set(sys.modules) - modules:
        if "user_" in name:
            del sys.modules[name]


def packed(members: dict[str, bytes | tarfile.TarInfo]) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue(), hashlib.sha256(buffer.getvalue()).hexdigest()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def job(folder: Path, code: str, function: str = "user_train.py:train", **fields: Any) -> Outcome:
    """The outcome of a job with this source file."""
    store = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
    archive, digest = packed({"user_train.py": code.encode()})
    objects.write(store, "s3://b/source", archive)
    spec: LaunchSpec = launch_spec(function, source=Source("s3://b/source", digest), **fields)
    return run_here(spec, store)


@pytest.mark.parametrize(("cpus", "threads"), [(0.5, 1), (1, 1), (3, 3)])
def test_torch_has_a_thread_for_each_cpu_of_the_rank(tmp_path: Path, cpus: float, threads: int) -> None:
    code = "import torch\n\n\ndef train(ctx):\n    ctx.log({'threads': torch.get_num_threads()}, 1)\n"
    before = torch.get_num_threads()
    try:
        outcome = job(tmp_path, code, resources=Resources(cpus=cpus))
    finally:
        torch.set_num_threads(before)
    assert [(one.key, one.value) for one in outcome.points] == [("threads", threads)]


def test_files_and_folders_are_unpacked(tmp_path: Path) -> None:
    archive, digest = packed({"a.py": b"1", "pkg/b/c.py": b"22"})
    unpack(archive, digest, tmp_path)
    found = {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {"a.py": b"1", "pkg/b/c.py": b"22"}


@pytest.mark.parametrize(
    "member",
    [
        {"../evil.py": b"1"},
        {"/tmp/evil.py": b"1"},
        {"a/../../evil.py": b"1"},
        {"link": link("link", "/etc/passwd")},
        {"hard": link("hard", "a.py", tarfile.LNKTYPE)},
        {"dev": link("dev", "", tarfile.CHRTYPE)},
        {"fifo": link("fifo", "", tarfile.FIFOTYPE)},
        {"a.py": b"1", "./a.py": b"2"},
    ],
    ids=["parent", "absolute", "nested", "symlink", "hardlink", "device", "fifo", "twice"],
)
def test_members_outside_of_the_folder_are_refused(tmp_path: Path, member: dict[str, Any]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    archive, digest = packed(member)
    with pytest.raises(InvalidSource):
        unpack(archive, digest, folder)
    assert [p for p in tmp_path.rglob("*") if p.name == "evil.py"] == []


def test_an_archive_that_unpacks_to_too_many_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, digest = packed({"zeros": bytes(1 << 20)})
    assert len(archive) < 10_000
    monkeypatch.setattr("flywheel_job.source.archive.MAX_BYTES", (1 << 20) - 1)
    with pytest.raises(InvalidSource, match="larger than"):
        unpack(archive, digest, tmp_path)


@pytest.mark.parametrize("damage", ["digest", "bytes"])
def test_a_damaged_archive_is_refused(tmp_path: Path, damage: str) -> None:
    archive, digest = packed({"a.py": b"1" * 1000})
    if damage == "digest":
        archive += b"0"
    else:
        archive = archive[:-20]
        digest = hashlib.sha256(archive).hexdigest()
    with pytest.raises(InvalidSource):
        unpack(archive, digest, tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("user_train.py", "is not of the form"),
        ("user_train.py:9x", "is not of the form"),
        ("user_other.py:train", "has no file 'user_other.py'"),
        ("../user_train.py:train", "has no file"),
        ("user_train.py:missing", "has no function 'missing'; it has: later, train, two, none_given"),
        ("user_train.py:two", r"two\(ctx, more\), but it is called with one argument"),
        ("user_train.py:none_given", r"none_given\(\), but"),
        ("user_train.py:value", "is a int, not a function"),
        ("user_train.py:later", "is async"),
        ("user_nowhere:train", "no module 'user_nowhere'"),
    ],
)
def test_a_function_that_cannot_be_called_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "user_train.py").write_text(
        "value = 3\nasync def later(ctx): pass\ndef train(ctx): pass\n"
        "def two(ctx, more): pass\ndef none_given(): pass\n"
    )
    with pytest.raises(InvalidFunction, match=message):
        load_function(name, tmp_path)


@pytest.mark.parametrize("name", ["code", "time"])  # one of a file, and one that is built in
def test_a_file_with_the_name_of_a_loaded_module_is_refused(tmp_path: Path, name: str) -> None:
    importlib.import_module(name)
    (tmp_path / f"{name}.py").write_text("def train(ctx):\n    pass\n")
    with pytest.raises(InvalidFunction, match=f"'{name}.py' has the name of the module '{name}' of Python"):
        load_function(f"{name}.py:train", tmp_path)


def test_a_function_in_a_package_may_use_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "user_pkg").mkdir()
    (tmp_path / "user_pkg" / "near.py").write_text("VALUE = 7\n")
    (tmp_path / "user_pkg" / "train.py").write_text(
        "from user_pkg.near import VALUE\ndef train(ctx): return VALUE + ctx\n"
    )
    assert load_function("user_pkg/train.py:train", tmp_path)(1) == 8


def test_an_exception_at_import_has_the_lines_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "user_train.py").write_text("x = 1\nimport user_absent\n")
    with pytest.raises(TrainingFailed) as raised:
        load_function("user_train.py:train", tmp_path)
    text = raised.value.message
    assert 'user_train.py", line 2, in <module>' in text
    assert text.endswith("ModuleNotFoundError: No module named 'user_absent'")
    assert "flywheel_job" not in text


def test_a_failure_has_the_last_40_lines_of_the_traceback(tmp_path: Path) -> None:
    code = "\n".join(
        ["def train(ctx):", "    f0()"]
        + [f"def f{n}():\n    f{n + 1}()" for n in range(30)]
        + ["def f30():", "    raise ValueError('bad \\0 value')"]
    )
    outcome = job(tmp_path, code)
    assert (outcome.succeeded, outcome.error_reason) == (False, "TRAINING_FAILED")
    lines = outcome.error_message.splitlines()
    assert len(lines) == 40
    assert lines[-1] == "ValueError: bad \\0 value"
    assert "f29" in outcome.error_message
    assert "worker.py" not in outcome.error_message


def test_an_exit_of_the_user_code_is_a_failure(tmp_path: Path) -> None:
    outcome = job(tmp_path, "import sys\ndef train(ctx): sys.exit(0)\n")
    assert outcome.error_reason == "TRAINING_FAILED"
    assert outcome.error_message.endswith("SystemExit: 0")


@dataclass(frozen=True)
class Wanted:
    layers: int
    rate: float = 0.1
    sizes: tuple[int, ...] = ()
    name: str | None = None


def test_parameters_become_a_dataclass() -> None:
    found = parse_params(Wanted, {"layers": 2, "rate": 1, "sizes": [3, 4]})
    assert found == Wanted(2, 1.0, (3, 4))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": "2"}, "layers is '2'"),
        ({"layers": 2.5}, "layers is 2.5"),
        ({"layers": True}, "layers is True"),
        ({}, "layers"),
        ({"layers": 1, "sizes": ["a"]}, "sizes.0 is 'a'"),
        ({"layers": 1, "more": 1, "less": 2}, r"more is unknown .*less is unknown \(known: layers"),
    ],
)
def test_parameters_of_another_type_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParams, match=message):
        parse_params(Wanted, values)


CODE = """
import numpy as np

def train(ctx):
    assert (ctx.rank, ctx.world_size, str(ctx.device)) == (0, 1, "cpu")
    for step in range(3):
        ctx.log({"loss": 1 / (step + 1)}, step)
    ctx.artifact("notes.txt", b"hello")
    ctx.note("found", "yes")
    from flywheel_job.signature import Input, Signature
    signature = Signature((Input("v__a", "FLOAT64"), Input("v__b", "FLOAT64")))
    ctx.export(bytes.fromhex(ctx.params["onnx"]), signature, np.float32(ctx.params["examples"]))
"""


def model(output: str = "SCORE", width: int = 2, *, fixed: int | None = None) -> str:
    """A model in hexadecimal that returns the sum of its inputs."""
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["INPUT", "axes"], [output], keepdims=1)],
        "sum",
        [helper.make_tensor_value_info("INPUT", TensorProto.FLOAT, [fixed or "rows", width])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [fixed or "rows", 1])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made)
    return made.SerializeToString().hex()


def test_a_function_logs_stores_and_exports(tmp_path: Path) -> None:
    rows = [[1.0, 2.0], [3.0, 4.0]]
    outcome = job(tmp_path, CODE, params={"onnx": model(), "examples": rows}, provenance={"commit": "c0ffee"})
    assert outcome.succeeded, outcome.error_message
    assert [(p.key, p.step, p.value) for p in outcome.points][:2] == [("loss", 0, 1.0), ("loss", 1, 0.5)]
    assert sorted(one.name for one in outcome.artifacts) == ["model.onnx", "notes.txt", "report.json"]
    assert outcome.params["found"] == "yes"
    assert outcome.code_version.endswith(" c0ffee")
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    report = objects.read(store, next(a.uri for a in outcome.artifacts if a.name == "report.json"))
    import base64
    import json

    golden = json.loads(report)["golden"]
    assert np.frombuffer(base64.b64decode(golden["scores"]), "<f4").tolist() == [3.0, 7.0]


def test_a_run_records_what_its_result_depends_on(tmp_path: Path) -> None:
    change = "-a\n+b\n"
    digest = hashlib.sha256(change.encode()).hexdigest()
    outcome = job(
        tmp_path,
        "def train(ctx):\n    pass\n",
        data={"train": DataSet("s3://b/t/", content_hash="da" * 32), "other": DataSet("s3://b/o/")},
        seed=7,
        provenance={
            "commit": "c0ffee",
            "dirty_sha256": digest,
            "dirty_diff": change,
            "lock_sha256": "10" * 32,
        },
    )
    found = outcome.environment
    assert ("7", "da" * 32, "c0ffee", digest, "10" * 32) == tuple(
        found[name] for name in ("seed", "data.train", "commit", "dirty_sha256", "lock_sha256")
    )
    assert outcome.code_version.startswith(f"sha256:{found['source_sha256']} c0ffee+dirty.")
    assert (platform.python_version(), platform.platform()) == (found["python"], found["platform"])
    assert torch.cuda.is_available() or "none" == found["gpu"]
    assert "requirements_sha256" not in found and "data.other" not in found
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    (stored,) = outcome.artifacts
    assert ("changes.diff", change) == (stored.name, objects.read(store, stored.uri).decode())


def test_a_part_of_the_uncommitted_changes_is_not_stored_as_all(tmp_path: Path) -> None:
    recorded = {"dirty_sha256": "ab" * 32, "dirty_diff": "-a\n"}
    outcome = job(tmp_path, "def train(ctx):\n    pass\n", provenance=recorded)
    assert ((), "ab" * 32) == (outcome.artifacts, outcome.environment["dirty_sha256"])


@pytest.mark.parametrize(
    ("onnx_model", "examples", "message"),
    [
        ("00", [[1.0, 2.0]], "cannot load the model"),
        (model("OTHER"), [[1.0, 2.0]], "not INPUT and SCORE"),
        (model(width=3), [[1.0, 2.0]], "cannot score"),
        (model(fixed=2), [[1.0, 2.0], [1.0, 2.0]], "cannot score"),
        (model(), [[1.0, 2.0, 3.0]], "signature has 2 inputs"),
        (model(), [], "signature has 2 inputs"),
        (model(), [[float("inf"), 1.0]], "not finite"),
    ],
)
def test_an_export_that_cannot_be_served_is_refused(
    tmp_path: Path, onnx_model: str, examples: list[Any], message: str
) -> None:
    outcome = job(tmp_path, CODE, params={"onnx": onnx_model, "examples": examples})
    assert outcome.error_reason == "INVALID_EXPORT"
    assert message in outcome.error_message
    assert not outcome.artifacts


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_metric_that_is_not_finite_ends_the_job(tmp_path: Path, value: str) -> None:
    outcome = job(tmp_path, f"def train(ctx): ctx.log({{'loss': float('{value}')}}, 4)\n")
    assert (outcome.error_reason, outcome.error_message) == (
        "NON_FINITE_METRIC",
        f"The metric 'loss' is {value} at step 4.",
    )


def test_an_unknown_data_set_ends_the_job(tmp_path: Path) -> None:
    outcome = job(tmp_path, "def train(ctx): ctx.data('valid')\n")
    assert outcome.error_reason == "UNKNOWN_DATA_SET"
    assert "it has: none" in outcome.error_message
