"""Tokens of attempts, and the address at which jobs report."""

from __future__ import annotations

import socket

import pytest

from flywheel_common.context import Principal
from flywheel_common.granted.tokens import ATTEMPT, AttemptTokens
from flywheel_common.grpc.attempt_tokens import WithAttemptTokens
from flywheel_common.grpc.errors import MissingToken
from tests.support.servers.trainer import memory_settings

TOKENS = AttemptTokens(b"k" * 32)


class Strict:
    """An authenticator as in jwt mode, which knows one token."""

    open = False

    async def authenticate(self, authorization: str) -> Principal:
        if authorization != "Bearer known":
            raise MissingToken("no")
        return Principal("ann", frozenset({"editor"}))


def test_a_token_names_its_attempt_and_cannot_be_forged() -> None:
    token = TOKENS.issue("job-x-1")
    assert "job-x-1" == TOKENS.verify(token)
    assert token == TOKENS.issue("job-x-1")
    for forged in (
        token.replace("job-x-1", "job-x-2"),
        token[:-1] + ("0" if token[-1] != "0" else "1"),
        AttemptTokens(b"o" * 32).issue("job-x-1"),
        token + "\n",
        "",
    ):
        assert TOKENS.verify(forged) is None
    with pytest.raises(ValueError, match="32 bytes"):
        AttemptTokens(b"short")


async def test_tokens_of_attempts_are_accepted_beside_those_of_the_service() -> None:
    authenticator = WithAttemptTokens(Strict(), TOKENS)
    attempt = await authenticator.authenticate(f"Bearer {TOKENS.issue('job-x-1')}")
    assert Principal("attempt:job-x-1", ATTEMPT) == attempt
    assert "ann" == (await authenticator.authenticate("Bearer known")).subject
    for wrong in ("", f"Bearer {TOKENS.issue('job-x-1')}0", "Bearer fwattempt.job-x-1."):
        with pytest.raises(MissingToken):
            await authenticator.authenticate(wrong)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"listen": "10.0.0.7:7103"}, "10.0.0.7:7103"),
        ({"listen": "0.0.0.0:7103"}, f"{socket.gethostname()}:7103"),
        ({"listen": "[::]:7103"}, f"{socket.gethostname()}:7103"),
        ({"listen": "0.0.0.0:7103", "trainer_address": "trainer:7103"}, "trainer:7103"),
    ],
)
def test_jobs_never_dial_an_address_of_all_interfaces(settings: dict[str, str], expected: str) -> None:
    assert expected == memory_settings(**settings).metrics_address


def test_quotas_are_per_project_with_a_default() -> None:
    settings = memory_settings(project_quotas={"a": {"cpus": 4}, "*": {"gpus": 0}})
    assert (4.0, None) == (settings.quota_of("a").cpus, settings.quota_of("a").gpus)
    assert (None, 0.0) == (settings.quota_of("b").cpus, settings.quota_of("b").gpus)
