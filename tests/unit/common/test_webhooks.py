"""What a webhook may be, and when it is tried again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flywheel_common.errors import InvalidId
from flywheel_common.webhooks.delivery import retry_seconds
from flywheel_common.webhooks.errors import InvalidWebhook
from flywheel_common.webhooks.webhook import Webhook, signature

GOOD = Webhook("p", "pager", "https://hooks.example/x", "FLYWHEEL", "s" * 16)
FORMATS = frozenset({"FLYWHEEL", "ALERTMANAGER"})


def test_a_good_webhook_passes() -> None:
    for webhook in (
        GOOD,
        replace(GOOD, secret=""),
        replace(GOOD, url="http://alertmanager:9093/api/v2/alerts"),
    ):
        assert webhook == webhook.checked(FORMATS)


@pytest.mark.parametrize(
    "changes",
    [
        {"url": ""},
        {"url": "ftp://hooks.example/x"},
        {"url": "https:///x"},
        {"url": "https://ann:pass@hooks.example/x"},
        {"url": "http://[::1"},
        {"url": "https://hooks.example:99999/x"},
        {"url": "https://hooks.example/" + "x" * 2048},
        {"secret": "short"},
        {"secret": "s" * 257},
        {"format": "SLACK"},
        {"format": ""},
    ],
)
def test_a_bad_webhook_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(InvalidWebhook):
        replace(GOOD, **changes).checked(FORMATS)


def test_an_id_follows_the_rule_of_ids() -> None:
    with pytest.raises(InvalidId):
        replace(GOOD, id="a b").checked(FORMATS)


def test_the_signature_covers_the_time_and_the_body() -> None:
    # printf '12.{}' | openssl dgst -sha256 -hmac ssssssssssssssss
    expected = "e818cef104ab054a473e8970dbb79830d77022f6bc1abc7257f800cecd70b04b"
    assert f"t=12,v1={expected}" == signature("s" * 16, 12, b"{}")
    signatures = {signature(k * 16, t, b) for k in "sr" for t in (12, 13) for b in (b"{}", b"[]")}
    assert 8 == len(signatures)


def test_retries_begin_soon_and_are_ten_minutes_apart_at_most() -> None:
    times = [retry_seconds(n) for n in range(1, 100)]
    assert [1.0, 2.0, 4.0] == times[:3]
    assert 600.0 == times[-1] == max(times)
    assert times == sorted(times)
