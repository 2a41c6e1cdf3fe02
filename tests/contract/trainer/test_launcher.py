"""The launcher on real S3: it stores the output of its command, and leaves no process behind."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flywheel_common.config import S3Settings
from flywheel_common.storage.s3 import object_store
from flywheel_trainer.jobs.job import JobName
from flywheel_trainer.jobs.logs import StoredLogs
from tests.support.eventually import eventually

JOB = JobName("p", "job-1")
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(s3_settings: S3Settings) -> Iterator[Start]:
    """Starts launchers of Python programs, and kills those that still run at the end of the test."""
    started = []
    environment = {
        "AWS_ENDPOINT_URL": s3_settings.s3_endpoint,
        "AWS_ACCESS_KEY_ID": s3_settings.s3_access_key.get_secret_value(),
        "AWS_SECRET_ACCESS_KEY": s3_settings.s3_secret_key.get_secret_value(),
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONPATH": ":".join(sys.path),
        "PATH": "/usr/bin:/bin",
    }

    def run(program: str, attempt: int = 1) -> subprocess.Popen[bytes]:
        logs = f"s3://{s3_settings.s3_bucket}/jobs/p/job-1/logs/driver"
        launcher = [sys.executable, "-m", "flywheel_job.launcher", logs, str(attempt), "--"]
        process = subprocess.Popen(
            [*launcher, sys.executable, "-uc", program], env=environment, stderr=subprocess.PIPE
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
async def logs(s3_settings: S3Settings) -> AsyncIterator[StoredLogs]:
    async with object_store(s3_settings) as objects:
        await objects.ensure_bucket()
        yield StoredLogs(objects)


async def status(process: subprocess.Popen[bytes]) -> int:
    """The exit status; nothing was written to standard error."""
    _, errors = await asyncio.to_thread(process.communicate, timeout=60)
    assert errors == b""
    return process.returncode


def alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def printed(logs: StoredLogs, *, ended: bool = True) -> bytes:
    return (await logs.read(JOB, "driver", 0, ended=ended)).data


async def test_output_and_status_of_each_attempt_are_kept(start: Start, logs: StoredLogs) -> None:
    assert 3 == await status(start("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"))
    assert b"out\nerr\n" == await printed(logs)
    assert 0 == await status(start("print('again')", attempt=2))
    assert b"out\nerr\nagain\n" == await printed(logs)


async def test_output_is_readable_while_the_command_runs(start: Start, logs: StoredLogs) -> None:
    start("import time; print('begun'); time.sleep(600)")

    async def begun() -> bool:
        return await printed(logs, ended=False) == b"begun\n"

    await eventually(begun, within=30)


async def test_the_kill_of_a_command_is_its_status(start: Start, logs: StoredLogs) -> None:
    assert 137 == await status(start("import os; print('x'); os.kill(os.getpid(), 9)"))
    assert b"x\n" == await printed(logs)


async def test_processes_that_the_command_left_behind_are_ended(
    start: Start, logs: StoredLogs, tmp_path: Path
) -> None:
    """Also one in a session of its own, which no signal to a group reaches."""
    program = """
import subprocess
for session in (False, True):
    print(subprocess.Popen(["sleep", "600"], start_new_session=session).pid)
"""
    assert 0 == await status(start(program))
    processes = [int(line) for line in (await printed(logs)).split()]
    assert 2 == len(processes)
    await eventually(lambda: not any(map(alive, processes)), within=5)


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGTERM, 137), (signal.SIGKILL, -9)], ids=["SIGTERM", "SIGKILL"]
)
async def test_stopping_the_launcher_ends_the_command(
    start: Start, logs: StoredLogs, number: signal.Signals, expected: int
) -> None:
    """Also a command that ignores SIGTERM."""
    program = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid())
time.sleep(600)
"""
    launcher = start(program)

    async def process_id() -> Any:
        return await printed(logs, ended=False)

    process = int(await eventually(process_id, within=30))
    launcher.send_signal(number)
    assert expected == await status(launcher)
    await eventually(lambda: not alive(process), within=5)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_gigabyte_with_nuls_is_bounded_in_memory_and_on_s3(
    start: Start, logs: StoredLogs, s3_settings: S3Settings
) -> None:
    program = """
import os
block = (b"x" * 97 + b"\\0\\xff\\n") * 10_486
for _ in range(1000):
    data = memoryview(block)
    while data:
        data = data[os.write(1, data):]
print("the end")
"""
    launcher = start(program)
    largest = 0

    async def ended() -> bool:
        nonlocal largest
        try:
            largest = max(largest, psutil.Process(launcher.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return True
        return launcher.poll() is not None

    await eventually(ended, within=120, every=0.05)
    assert 0 == await status(launcher)
    async with object_store(s3_settings) as objects:
        size = sum([info.size async for info in objects.list("jobs/p/job-1/logs/driver/")])
    assert 60 << 20 < size <= 64 << 20
    assert largest < 500 << 20
    end, _ = await logs.end_of(JOB)
    assert end == 1000 * 100 * 10_486 + len("the end\n")
    assert b"the end\n" == (await logs.tail(JOB, 8))
    part = await logs.read(JOB, "driver", 100 << 20, ended=False)
    assert b"bytes were cut out of the log here" in part.data[:100]
    assert part.offset > 900 << 20
