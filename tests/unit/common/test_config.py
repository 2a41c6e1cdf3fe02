"""Typed settings from the environment."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsConfigDict

from flywheel_common.config import (
    PostgresSettings,
    S3Settings,
    ServiceSettings,
    load,
    redact_dsn,
    split_address,
)


class ExampleSettings(ServiceSettings, PostgresSettings, S3Settings):
    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_EXAMPLE_")
    listen: str = "127.0.0.1:7199"


GOOD = {
    "POSTGRES_DSN": "postgresql://flywheel:hunter2@127.0.0.1:7301/x",
    "S3_ENDPOINT": "http://127.0.0.1:7303",
    "S3_ACCESS_KEY": "flywheel",
    "S3_SECRET_KEY": "hunter3",
    "S3_BUCKET": "b",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in GOOD.items():
        monkeypatch.setenv(f"FLYWHEEL_EXAMPLE_{name}", value)
    return monkeypatch


def test_settings_come_from_the_environment_with_the_service_prefix(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("FLYWHEEL_EXAMPLE_DRAIN_SECONDS", "0.25")
    settings = load(ExampleSettings)
    assert settings.drain_seconds == 0.25
    assert settings.dsn == GOOD["POSTGRES_DSN"]
    assert settings.listen == "127.0.0.1:7199"


def test_overrides_win_where_given(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("FLYWHEEL_EXAMPLE_LISTEN", "127.0.0.1:1")
    assert load(ExampleSettings, listen="127.0.0.1:2", s3_bucket=None).listen == "127.0.0.1:2"


def test_settings_are_frozen(environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError):
        load(ExampleSettings).listen = "x"


def test_secrets_do_not_show(environment: pytest.MonkeyPatch) -> None:
    settings = load(ExampleSettings)
    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert "hunter" not in text


def test_all_problems_are_listed_and_the_process_exits_with_2(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.delenv("FLYWHEEL_EXAMPLE_S3_BUCKET")
    environment.setenv("FLYWHEEL_EXAMPLE_LISTEN", "not-an-address")
    environment.setenv("FLYWHEEL_EXAMPLE_DRAIN_SECONDS", "hunter4-soon")
    with pytest.raises(SystemExit) as caught:
        load(ExampleSettings)
    shown = capsys.readouterr().err
    assert caught.value.code == 2
    for name in ("S3_BUCKET", "LISTEN", "DRAIN_SECONDS"):
        assert f"FLYWHEEL_EXAMPLE_{name}" in shown
    assert "3 problem(s)" in shown
    assert "hunter" not in shown


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://u:p%40ss@h:1/d", "postgresql://u:***@h:1/d"),
        ("redis://:secret@h:1/0", "redis://:***@h:1/0"),
        ("postgresql://h/d?user=u&password=abc&x=1", "postgresql://h/d?user=u&password=***&x=1"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
    ],
)
def test_passwords_in_addresses_are_redacted(dsn: str, shown: str) -> None:
    assert redact_dsn(dsn) == shown


def test_addresses_are_split_or_refused() -> None:
    assert split_address("127.0.0.1:80") == ("127.0.0.1", 80)
    assert split_address("[::1]:80") == ("::1", 80)
    for bad in ("", "localhost", ":80", "h:", "h:99999", "h:x"):
        with pytest.raises(ValueError, match="host:port"):
            split_address(bad)
