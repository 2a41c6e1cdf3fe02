"""Runs every command and program of the documentation against a platform that has played the flights example.

A fenced block with the language `python` is a program. Lines of other blocks that start with `flywheel` or
`grpcurl` are commands (a backslash or an open quote continues the line). `make` commands start platforms of
their own; CI and the fresh-machine run prove them.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory

from flywheel_local.platform import Platform
from tests.support.models_guide import TOOLS, run, unregistered
from tests.support.servers.platform import SERVICES, client_environment, example_output, platform

__all__ = ["client_environment", "example_output", "platform"]

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    p.relative_to(ROOT) for p in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if "adr" not in p.parts
)
TESTED_ALONE = tuple(
    Path("docs/guides", f"{name}.md")
    for name in (
        "batch-scoring",
        "evaluation",
        "experiments",
        "models",
        "monitoring",
        "pipelines",
        "training",
    )
)
"""Documents whose programs and commands are parts of a user's project, or need one. Tests of their own run
them: tests/unit/job/test_training_guide.py and others."""
ENDLESS = ("flywheel models watch",)
"""Commands that run until they are interrupted."""

pytestmark = pytest.mark.timeout(900)


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """(language, body) of each fenced code block of a Markdown text."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(body: str) -> list[str]:
    """The shell commands of a block, continued lines joined, comments removed."""
    found, open_line = [], ""
    for line in body.splitlines():
        open_line += ("\n" if open_line else "") + line
        if open_line.endswith("\\"):
            continue
        try:
            words = shlex.split(open_line, comments=True)
        except ValueError:  # a quote is still open
            continue
        if words and words[0] in ("flywheel", "grpcurl"):
            found.append(shlex.join(words))
        open_line = ""
    return found


MODEL_FILE = "model.onnx"
"""A program that names this file gets it from each tool of docs/guides/models.md."""
PYTHON = [
    (f"{document}:{number}", body)
    for document in DOCUMENTS
    if document not in TESTED_ALONE
    for number, (language, body) in enumerate(fenced_blocks((ROOT / document).read_text()))
    if language == "python"
]
PROGRAMS = [pytest.param(body, id=name) for name, body in PYTHON if MODEL_FILE not in body]
OWN_MODELS = [pytest.param(body, id=name) for name, body in PYTHON if MODEL_FILE in body]
COMMANDS = [
    pytest.param(command, id=f"{document}:{' '.join(shlex.split(command)[:3])}")
    for document in DOCUMENTS
    if document not in TESTED_ALONE
    for language, body in fenced_blocks((ROOT / document).read_text())
    if language != "python"
    for command in commands(body)
]


def test_the_documentation_contains_programs_and_commands() -> None:
    assert PROGRAMS
    assert {shlex.split(p.values[0])[0] for p in COMMANDS} == {"flywheel", "grpcurl"}  # type: ignore[arg-type]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_documented_program_succeeds(
    program: str, example_output: str, client_environment: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "program.py"
    script.write_text(program)
    done = subprocess.run(
        [sys.executable, str(script)], env=client_environment, capture_output=True, text=True, timeout=60
    )
    assert (0, "") == (done.returncode, done.stderr)


async def model_file(tool: str, inputs: int) -> None:
    """Write the file that the tool's program of the guide writes, for a model with so many inputs."""
    rows = np.random.default_rng(5).normal(size=(200, inputs)).astype(np.float32)
    await run(unregistered(tool), {"rows": rows, "labels": (rows.sum(axis=1) > 0).astype(int)})


@pytest.mark.parametrize("program", OWN_MODELS)
@pytest.mark.parametrize("tool", TOOLS)
async def test_a_model_of_each_tool_is_served_by_ten_lines(
    program: str,
    tool: str,
    example_output: str,
    client_environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 10 == len([line for line in program.splitlines() if line])
    model = f"my-{tool.lower()}"
    (tmp_path / "program.py").write_text(program.replace("my-model", model))
    monkeypatch.chdir(tmp_path)

    def registered() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "program.py"]
        return subprocess.run(command, env=client_environment, capture_output=True, text=True, timeout=120)

    await model_file(tool, inputs=5)
    refused = await asyncio.to_thread(registered)
    assert refused.returncode != 0
    assert "SignatureError" in refused.stderr
    assert "its features have 3: trip_facts__hour, trip_facts__distance, plane_facts__seats" in refused.stderr
    await model_file(tool, inputs=3)
    done = await asyncio.to_thread(registered)
    assert (0, "") == (done.returncode, done.stderr)
    assert f"projects/default/models/{model}/versions/1" in done.stdout, "the refused file stored nothing"
    # The score itself may be 0, which is not printed.
    assert "source: PREDICTION_SOURCE_MODEL" in done.stdout
    assert "degraded" not in done.stdout, "the model answered, no fallback"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_succeeds(
    command: str, example_output: str, platform: Platform, client_environment: dict[str, str]
) -> None:
    words = shlex.split(command)
    if words[0] == "grpcurl":
        _grpcurl(words, platform)
        return
    words[0] = str(Path(sys.executable).with_name("flywheel"))
    started = subprocess.Popen(
        words, cwd=ROOT, env=client_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        output, errors = started.communicate(timeout=10 if command.startswith(ENDLESS) else 120)
    except subprocess.TimeoutExpired:
        assert command.startswith(ENDLESS), "the command does not end"
        started.send_signal(signal.SIGINT)
        output, errors = started.communicate(timeout=20)
        assert "Traceback" not in errors
        return
    assert (0, "") == (started.returncode, errors), output
    assert output.strip()


def _grpcurl(words: list[str], platform: Platform) -> None:
    """Runs grpcurl where it is installed; else sends the same JSON body to the same method."""
    at = next(i for i, word in enumerate(words) if re.fullmatch(r"127\.0\.0\.1:\d+", word))
    name = SERVICES[int(words[at].split(":")[1]) - 7101]
    address = f"127.0.0.1:{platform.ports[name]}"
    if shutil.which("grpcurl"):
        subprocess.run([*words[:at], address, *words[at + 1 :]], check=True, timeout=60)
        return
    service, method = words[at + 1].rsplit("/", 1)
    body = json.loads(words[words.index("-d") + 1]) if "-d" in words else {}
    importlib.import_module(f"flywheel_protos.{name}.v1.{name}_pb2")
    described = descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]
    request = json_format.ParseDict(body, message_factory.GetMessageClass(described.input_type)())
    with grpc.insecure_channel(address) as opened:
        call = opened.unary_unary(f"/{service}/{method}", request_serializer=type(request).SerializeToString)
        call(request, timeout=10)
