"""JSON logs without secrets."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from flywheel_common.telemetry.logs import RpcLog, configure_logs, get_logger


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    out, before = io.StringIO(), structlog.get_config()
    configure_logs("flywheel-test", "INFO", out)
    yield out
    structlog.configure(**before)
    root.handlers[:], root.level = handlers, level


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_line_with_service_and_level(stream: io.StringIO) -> None:
    get_logger("flywheel_x").info("lease taken", lease="ticker")
    get_logger("flywheel_x").debug("not shown")
    (line,) = lines(stream)
    assert {k: line[k] for k in ("event", "level", "service", "lease", "module")} == {
        "event": "lease taken",
        "level": "info",
        "service": "flywheel-test",
        "lease": "ticker",
        "module": "flywheel_x",
    }


def test_secrets_are_redacted_at_any_depth(stream: io.StringIO) -> None:
    get_logger("m").warning(
        "x",
        s3_secret_key="hunter2",
        nested={"password": "hunter2", "urls": ["redis://:hunter2@h:1"]},
        dsn="postgresql://u:hunter2@h/d",
        error="cannot connect to postgresql://u:hunter2@h/d",
    )
    assert "hunter2" not in stream.getvalue()
    assert lines(stream)[0]["error"] == "cannot connect to postgresql://u:***@h/d"


def test_tracebacks_hold_no_local_variables(stream: io.StringIO) -> None:
    try:
        password = "hunter2"
        raise RuntimeError("broken", len(password))
    except RuntimeError as error:
        get_logger("m").error("failed", exc_info=error)
    assert "hunter2" not in stream.getvalue()
    assert "RuntimeError" in stream.getvalue()


def test_driver_logs_go_to_the_same_stream(stream: io.StringIO) -> None:
    logging.getLogger("aiokafka").warning("broker %s is gone", 1)
    assert lines(stream)[0]["event"] == "broker 1 is gone"


async def test_rpc_lines_are_valid_json_whatever_callers_send() -> None:
    out = io.StringIO()
    log = RpcLog("flywheel-test", out, flush_seconds=0.001)
    call = {
        "principal": 'ev"il\n{',
        "code": "OK",
        "seconds": 0.0015,
        "request_id": "ä\0",
        "trace_id": "0" * 32,
    }
    log.write(1_700_000_000.25, "/a.B/C", **call)
    log.write(1_700_000_000.25, "/a.B/C", **{**call, "code": "NOT_FOUND", "reason": "UNKNOWN_VIEW"})
    await asyncio.sleep(0.01)
    first, second = lines(out)
    assert first == {
        "event": "rpc",
        "level": "info",
        "service": "flywheel-test",
        "timestamp": "2023-11-14T22:13:20.250Z",
        "method": "/a.B/C",
        "principal": 'ev"il\n{',
        "code": "OK",
        "duration_ms": 1.5,
        "request_id": "ä\0",
        "trace_id": "0" * 32,
    }
    assert second["reason"] == "UNKNOWN_VIEW"
