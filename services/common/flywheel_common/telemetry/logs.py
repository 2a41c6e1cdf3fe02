"""JSON logs on standard output: structlog for events, and a buffered writer with one line per RPC."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, TextIO

import structlog

from flywheel_common.config import redact_dsn
from flywheel_common.context import current_call

_SECRET_KEY = re.compile(
    r"password|passwd|secret|token|authorization|api_?key|credential|private_?key|_dsn$|^dsn$", re.IGNORECASE
)
REDACTED = "***"


def configure_logs(service: str, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Configures structlog and the logging of the standard library (drivers) to write JSON lines."""
    out = stream or sys.stdout
    numeric = logging.getLevelNamesMapping()[level]
    structlog.configure(
        processors=[
            _add_service(service),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_call,
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=20)
            ),
            redact,
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    handler = _ToStructlog()
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(numeric, logging.WARNING))


def get_logger(name: str) -> Any:
    """A structlog logger with the module name: `log.info("lease taken", lease=…)`."""
    return structlog.get_logger(module=name)


def redact(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replaces values of secret keys and passwords in URLs, at any depth."""
    for key, value in event.items():
        event[key] = _redacted(key, value)
    return event


def _redacted(key: str, value: Any) -> Any:
    if _SECRET_KEY.search(key) and value:
        return REDACTED
    if isinstance(value, str):
        return redact_dsn(value) if "@" in value or "=" in value else value
    if isinstance(value, dict):
        return {k: _redacted(str(k), v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted("", v) for v in value]
    return value


def _add_service(service: str) -> Any:
    def add(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        return event

    return add


def _add_call(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    call = current_call.get()
    if call is not None:
        if call.method:
            event.setdefault("method", call.method)
        if call.traceparent:
            event.setdefault("trace_id", call.traceparent[3:35])
    return event


class _ToStructlog(logging.Handler):
    """Forwards records of the standard library's logging to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            log = get_logger(record.name)
            log.log(record.levelno, record.getMessage(), exc_info=record.exc_info)
        except Exception:  # noqa: BLE001 - logging must not raise
            self.handleError(record)


class RpcLog:
    """Writes one JSON line per RPC. Lines are buffered for `flush_seconds`, because a write per call would
    cost more than the rest of the pipeline. A crash loses at most the buffered lines."""

    def __init__(self, service: str, stream: TextIO | None = None, flush_seconds: float = 0.05) -> None:
        self._head = f'{{"event":"rpc","level":"info","service":{json.dumps(service)},"timestamp":"'
        self._stream = stream or sys.stdout
        self._flush_seconds = flush_seconds
        self._lines: list[str] = []
        self._second = -1
        self._stamp = ""

    def write(
        self,
        now: float,
        method: str,
        *,
        principal: str,
        code: str,
        seconds: float,
        request_id: str,
        trace_id: str,
        reason: str = "",
    ) -> None:
        """Buffers one line. `now` is in Unix seconds; values that come from callers are escaped."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        escape = json.dumps
        line = (
            f'{self._head}{self._stamp}.{int((now - second) * 1000):03d}Z","method":"{method}",'
            f'"principal":{escape(principal)},"code":"{code}","duration_ms":{seconds * 1000:.3f},'
            f'"request_id":{escape(request_id)},"trace_id":"{trace_id}"'
        )
        self._lines.append(f'{line},"reason":{escape(reason)}}}\n' if reason else line + "}\n")
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_later(self._flush_seconds, self.flush)
        elif len(self._lines) >= 2000:
            self.flush()

    def flush(self) -> None:
        """Writes the buffered lines."""
        if self._lines:
            lines, self._lines = self._lines, []
            self._stream.write("".join(lines))
            self._stream.flush()
