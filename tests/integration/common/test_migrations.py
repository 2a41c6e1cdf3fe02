"""Migrations on PostgreSQL."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flywheel_common import errors
from flywheel_common.postgres.migrate import migrate, read_migrations
from flywheel_common.postgres.pool import create_pool
from tests.support.row_counts import count


def write(folder: Path, **files: str) -> Path:
    target = folder / "flywheel_x" / "migrations"
    target.mkdir(parents=True, exist_ok=True)
    for name, sql in files.items():
        (target / f"{name}.sql").write_text(sql)
    return target


async def test_concurrent_processes_apply_migrations_once(database: str, tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        **{"0001_a": "CREATE TABLE a (x int)", "0002_b": "CREATE TABLE b (x int); INSERT INTO b VALUES (1)"},
    )
    async with create_pool(database, max_size=8) as pool:
        applied = await asyncio.gather(*(migrate(pool, folder) for _ in range(5)))
        assert sorted(applied)[:4] == [0, 0, 0, 0]
        assert await count(pool, "b") == 1
        write(tmp_path, **{"0003_c": "INSERT INTO b VALUES (2)"})
        assert await migrate(pool, folder) == 1
        assert await count(pool, "b") == 2


async def test_a_changed_migration_is_refused(database: str, tmp_path: Path) -> None:
    folder = write(tmp_path, **{"0001_a": "CREATE TABLE a (x int)"})
    async with create_pool(database) as pool:
        await migrate(pool, folder)
        write(tmp_path, **{"0001_a": "CREATE TABLE a (x bigint)"})
        with pytest.raises(errors.FailedPrecondition) as caught:
            await migrate(pool, folder)
        assert caught.value.reason == "MIGRATION_CHANGED"


async def test_a_failed_migration_is_rolled_back_and_can_be_fixed(database: str, tmp_path: Path) -> None:
    folder = write(tmp_path, **{"0001_a": "CREATE TABLE a (x int); SELECT broken"})
    async with create_pool(database) as pool:
        with pytest.raises(Exception, match="broken"):
            await migrate(pool, folder)
        write(tmp_path, **{"0001_a": "CREATE TABLE a (x int)"})
        assert await migrate(pool, folder) == 1


async def test_older_code_refuses_a_newer_database(database: str, tmp_path: Path) -> None:
    folder = write(tmp_path, **{"0001_a": "SELECT 1", "0002_b": "SELECT 1"})
    async with create_pool(database) as pool:
        await migrate(pool, folder)
        (folder / "0002_b.sql").unlink()
        with pytest.raises(errors.FailedPrecondition) as caught:
            await migrate(pool, folder)
        assert caught.value.reason == "SCHEMA_TOO_NEW"


@pytest.mark.parametrize("name", ["1_a", "0001-a", "0001_A"])
async def test_misnamed_migrations_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.FailedPrecondition):
        read_migrations(write(tmp_path, **{name: "SELECT 1"}))


def test_migration_numbers_may_have_gaps_but_no_duplicates(tmp_path: Path) -> None:
    folder = write(tmp_path, **{"0001_a": "SELECT 1", "0007_b": "SELECT 1"})
    assert [m.number for m in read_migrations(folder)] == [1, 7]
    with pytest.raises(errors.FailedPrecondition) as caught:
        read_migrations(write(tmp_path, **{"0007_c": "SELECT 1"}))
    assert caught.value.reason == "INVALID_MIGRATIONS"
