"""Processes of the local platform: nothing is left behind, and data survive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flywheel_local import guardian
from flywheel_local.backends import Backends
from flywheel_local.failure import LocalError
from flywheel_local.kafka import Kafka
from flywheel_local.postgres import Postgres
from flywheel_local.process import Process
from flywheel_local.redis import Redis

# Starts a child that leaves its session and ignores SIGTERM.
_STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(600)
    os._exit(0)
time.sleep(600)
"""


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def gone(pid: int) -> bool:
    fields = guardian.stat_of(pid)
    return not fields or fields[0] in "ZX"


def test_a_process_id_that_was_reused_is_not_signalled(tmp_path: Path) -> None:
    process = Process("child", [sys.executable, "-c", "import time; time.sleep(600)"], log=tmp_path / "log")
    started = guardian.start_of(process.pid)
    assert {process.pid} == guardian.family({process.pid: started})
    assert set() == guardian.family({process.pid: started - 1})
    process.stop()
    assert 0 == guardian.start_of(process.pid)
    assert set() == guardian.family({process.pid: started})


def test_stopping_ends_descendants_that_left_the_session(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = Process("stubborn", [sys.executable, "-c", _STUBBORN], log=log)
    assert within(10, lambda: log.read_text().strip().isdigit())
    grandchild = int(log.read_text())
    process.stop(grace_seconds=0.2)
    assert process.exit_code == -signal.SIGKILL
    assert gone(grandchild)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_child_processes_end_when_the_launcher_dies(tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "log"
    launcher = f"""
import sys, time
from pathlib import Path
from flywheel_local.process import Process
child = Process("stubborn", [sys.executable, "-c", {_STUBBORN!r}], log=Path({str(log)!r}))
print(child.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        child = int(started.stdout.readline())
        assert within(10, lambda: log.exists() and log.read_text().strip().isdigit())
        grandchild = int(log.read_text())
        assert not gone(child)
        assert not gone(grandchild)
        started.send_signal(number)
    assert within(guardian.GRACE_SECONDS + 5, lambda: gone(child) and gone(grandchild))


def test_a_backend_that_fails_to_start_shows_its_log_and_a_remedy(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    servers = Backends({"redis"}, directory=tmp_path)
    (tmp_path / "redis").mkdir()
    # A folder in the place of the append-only file of Redis.
    (tmp_path / "redis" / "appendonly.aof").mkdir()
    with pytest.raises(LocalError) as error:
        servers.start()
    assert "redis ended while starting" in str(error.value)
    assert "remedy:" in str(error.value)
    assert str(tmp_path / "log" / "redis.log") in str(error.value)


def test_data_survive_a_killed_postgres(postgres: Postgres, database: str) -> None:
    import asyncio

    import asyncpg

    async def ask(statement: str) -> object:
        connection = await asyncpg.connect(database)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    asyncio.run(ask("CREATE TABLE kept AS SELECT 42 AS answer"))
    port = postgres.port
    postgres.kill()
    postgres.restart()
    assert postgres.port == port
    assert asyncio.run(ask("SELECT answer FROM kept")) == 42


async def test_kafka_creates_no_topics_on_write(kafka: Kafka, topic_prefix: str) -> None:
    from aiokafka import AIOKafkaProducer
    from aiokafka.errors import KafkaError

    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, request_timeout_ms=2000)
    await producer.start()
    try:
        with pytest.raises(KafkaError):
            await producer.send_and_wait(f"{topic_prefix}misspelt", b"1")
    finally:
        await producer.stop()


def test_only_the_owner_can_read_secrets(redis: Redis) -> None:
    redis.secret("password")
    file = redis.data.parent / "secrets" / "redis-password"
    assert file.stat().st_mode & 0o077 == 0
    assert file.stat().st_uid == os.geteuid()
