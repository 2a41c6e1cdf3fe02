"""Processes of the local platform that end are started again, a few times in a row, never during a stop."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from redis import Redis

from flywheel_local import state as state_file
from flywheel_local.backends import Backends
from flywheel_local.failure import LocalError
from flywheel_local.process import Process
from flywheel_local.restarts import Restarts
from flywheel_local.state import State
from flywheel_local.stopping import Stopped, stoppable, undisturbed
from tests.integration.local.test_processes import gone

FAILS = "import sys; print('the disk is full'); sys.exit(7)"
SLEEPS = "import time; time.sleep(600)"


class Tiny:
    """A process that runs these lines of Python, and its restarts."""

    name = "tiny"

    def __init__(self, log: Path, code: str) -> None:
        self._log, self.code = log, code
        self.starts = 0
        self.broken = False
        self.start_again()

    def start_again(self) -> None:
        if self.broken:
            raise LocalError("port 1 is in use", "stop the other process")
        self.starts += 1
        self.process = Process("tiny", [sys.executable, "-c", self.code], log=self._log)

    def wait(self) -> None:
        while self.process.running:
            time.sleep(0.01)


class Watched:
    """Restarts of a tiny process on a clock that stands still between the calls of `after`."""

    def __init__(self, tiny: Tiny) -> None:
        self.now, self.messages = 0.0, list[str]()
        self._tiny = tiny
        self.restarts = Restarts([tiny], self.messages.append, lambda: self.now)

    def after(self, seconds: float) -> int:
        """Moves the clock and ticks; returns how often the process was started."""
        self.now += seconds
        self.restarts.tick()
        return self._tiny.starts


def test_a_process_that_ends_is_started_five_times_and_then_given_up(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path / "log", FAILS)
    watched = Watched(tiny)
    for number, delay in enumerate([1.0, 2.0, 4.0, 8.0, 16.0], start=1):
        tiny.wait()
        assert watched.after(0) == number
        assert watched.restarts.notes() == {
            "tiny": "ended (exit status 7: the disk is full), is started again"
        }
        assert watched.after(delay - 0.1) == number
        assert watched.after(0.1) == number + 1
    tiny.wait()
    assert watched.after(0) == watched.after(1000) == 6
    assert watched.restarts.notes() == {
        "tiny": "given up after 5 restarts in a row: exit status 7: the disk is full"
    }
    assert len(watched.messages) == 6
    assert "stays down (exit status 7: the disk is full" in watched.messages[-1]


def test_a_process_that_ran_for_a_minute_starts_a_new_row(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path / "log", SLEEPS)
    watched = Watched(tiny)
    for number in range(1, 9):
        watched.after(60)
        tiny.process.kill()
        assert watched.after(0) == number
        assert watched.after(1) == number + 1
    assert watched.restarts.notes() == {"tiny": "restarted 8x, last after exit status -9"}
    tiny.process.stop()


def test_a_restart_that_fails_counts_too(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path / "log", FAILS)
    watched = Watched(tiny)
    tiny.wait()
    tiny.broken = True
    for _ in range(40):
        watched.after(1)
    assert tiny.starts == 1
    assert watched.restarts.notes()["tiny"].startswith("given up after 5 restarts")
    assert sum("port 1 is in use" in message for message in watched.messages) == 5


def test_a_stop_signal_waits_until_a_started_process_is_known() -> None:
    known: list[str] = []
    with stoppable():
        with pytest.raises(Stopped):
            with undisturbed():
                with undisturbed():
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(0.05)
                    known.append("started")
                known.append("stored")
            known.append("stopped too late")
        with undisturbed():
            known.append("clean-up")
    assert known == ["started", "stored", "clean-up"]


@pytest.mark.timeout(120)
def test_a_stop_during_restarts_leaves_no_process(tmp_path: Path) -> None:
    """The launcher restarts a process that ends at once, as fast as it can, until SIGTERM."""
    log = tmp_path / "log"
    launcher = f"""
import sys
from pathlib import Path
from flywheel_local import restarts
from flywheel_local.process import Process
from flywheel_local.restarts import Restarts
from flywheel_local.stopping import Stopped, stoppable, undisturbed

restarts.FIRST_DELAY_SECONDS, restarts.HEALTHY_SECONDS = 0.0, 0.0
CODE = "import os, time; pid = os.getpid(); print(pid, flush=True); time.sleep(0.02 if pid % 2 else 600)"

class Looping:
    name, process = "looping", None
    def start_again(self):
        with undisturbed():
            if self.process is not None:
                self.process.kill()
            self.process = Process("looping", [sys.executable, "-S", "-c", CODE], log=Path({str(log)!r}))

looping = Looping()
watched = Restarts([looping], lambda _: None)
try:
    with stoppable():
        looping.start_again()
        print("started", flush=True)
        while True:
            watched.tick()
            if looping.process.running and looping.process.pid % 2 == 0:
                looping.process.kill()
except Stopped:
    looping.process.stop()
"""
    dice = random.Random(3)
    for _ in range(8):
        log.unlink(missing_ok=True)
        with subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True) as started:
            assert started.stdout is not None
            assert started.stdout.readline() == "started\n"
            time.sleep(dice.uniform(0.0, 0.3))
            started.send_signal(signal.SIGTERM)
            assert started.wait(20) == 0
        assert [int(line) for line in log.read_text().split() if not gone(int(line))] == []


def test_status_says_what_ended_and_why(tmp_path: Path) -> None:
    me = psutil.Process()
    note = "given up after 5 restarts in a row: exit status 7: the disk is full"
    running = Process("monitor", [sys.executable, "-c", SLEEPS], log=tmp_path / "log")
    state = State(
        me.pid,
        me.create_time(),
        ready=True,
        # This process stands for another one that got the id of the ended process.
        members={"feature": (me.pid, "1", "feature.log"), "monitor": (running.pid, "2", "monitor.log")},
        notes={"feature": note},
    )
    state_file.write(tmp_path / "state.json", state)
    done = subprocess.run(
        [sys.executable, "-m", "flywheel_local", "status"],
        env={**os.environ, "FLYWHEEL_LOCAL_DIR": str(tmp_path), "COLUMNS": "250"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    running.stop()
    assert done.returncode == 1, done.stderr
    feature, monitor = [line for line in done.stdout.splitlines() if ".log" in line]
    assert "DEAD" in feature and note in feature
    assert str(running.pid) in monitor and "DEAD" not in monitor


def test_a_killed_server_is_started_again_with_its_data(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with Backends({"redis"}, directory=tmp_path) as backends:
        redis = backends.redis
        client = Redis.from_url(redis.url)
        client.set("kept", "42")
        now = 0.0
        restarts = Restarts(backends, lambda _: None, lambda: now)
        assert redis.process is not None
        before = redis.process.pid
        redis.process.signal(signal.SIGKILL)
        while redis.process.running:
            time.sleep(0.01)
        assert restarts.tick()
        now = 1.0
        assert restarts.tick()
        assert redis.process.pid != before
        assert client.get("kept") == b"42"
        assert not restarts.tick()
        client.close()
