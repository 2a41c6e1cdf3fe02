"""Settings of the feature service."""

from __future__ import annotations

import socket

import pytest

from flywheel_feature.config import FeatureSettings


@pytest.mark.parametrize(
    ("listen", "given", "expected"),
    [
        ("127.0.0.1:7101", "", "127.0.0.1:7101"),
        ("0.0.0.0:7101", "", f"{socket.gethostname()}:7101"),
        ("[::]:7101", "", f"{socket.gethostname()}:7101"),
        ("0.0.0.0:7101", "feature.example:443", "feature.example:443"),
    ],
)
def test_joins_never_dial_an_address_of_all_interfaces(listen: str, given: str, expected: str) -> None:
    others = {"postgres_dsn": "postgresql://none", "redis_url": "redis://none", "kafka_bootstrap": "none:1"}
    s3 = {"s3_endpoint": "http://none", "s3_access_key": "a", "s3_secret_key": "s", "s3_bucket": "local"}
    settings = FeatureSettings(listen=listen, join_service_address=given, **others, **s3)
    assert expected == settings.address_of_joins
