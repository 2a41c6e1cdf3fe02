"""Runs of a trainer that wants tokens and TLS."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import flywheel as fw
from flywheel.tracking.syncing import sync_spools
from flywheel_trainer.runs.run import RunName, RunState
from tests.support.servers.restarted_trainer import RestartedTrainer

KEY = ec.generate_private_key(ec.SECP256R1())
Start = Callable[..., fw.Run]


def token(seconds: float = 60.0) -> str:
    claims = {"sub": "ada", "iss": "i", "aud": "flywheel", "exp": time.time() + seconds, "roles": ["editor"]}
    return jwt.encode(claims, KEY, algorithm="ES256")


def certificate() -> bytes:
    """A certificate of 127.0.0.1 that KEY has signed itself."""
    name, now = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trainer")]),
        dt.datetime.now(dt.UTC),
    )
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    return built.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[RestartedTrainer]:
    pem, format_ = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    private = KEY.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files = {
        "cert.pem": certificate(),
        "key.pem": private,
        "public.pem": KEY.public_key().public_bytes(pem, format_),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    started = RestartedTrainer(
        auth_mode="jwt",
        jwt_issuer="i",
        jwt_audience="flywheel",
        jwt_key_file=tmp_path / "public.pem",
        tls_cert_file=tmp_path / "cert.pem",
        tls_key_file=tmp_path / "key.pem",
    )
    started.start()
    yield started
    started.close()


@pytest.fixture
def start(trainer: RestartedTrainer, tmp_path: Path) -> Start:
    def run(**options: Any) -> fw.Run:
        values = {
            "address": trainer.address,
            "spool": tmp_path / "spool",
            "system_metrics": False,
            "tls": fw.ClientTls(ca_file=tmp_path / "cert.pem"),
            **options,
        }
        return fw.run("late", **values)

    return run


def test_a_run_and_its_child_are_logged_with_a_token_over_tls(
    trainer: RestartedTrainer, start: Start, tmp_path: Path
) -> None:
    tokens: list[str] = []

    def renewed() -> str:
        tokens.append(token())
        return tokens[-1]

    with start(token=renewed) as run, run.child(name="fold") as child:
        run.log({"loss": 0.5}, step=1)
        run.log_text("text", "a.txt")
    assert len(tokens) > 3, "a token is asked for before each call"
    for one in (run, child):
        record = trainer.runs.record(RunName.parse(one.name))
        assert RunState.SUCCEEDED is record.run.state
    tls = fw.ClientTls(ca_file=tmp_path / "cert.pem")
    with fw.connect(trainer=trainer.address, token=token(), tls=tls) as client:
        found = client.get_run(run.name)
        assert ({"loss": 0.5}, ["a.txt"]) == (dict(found.metrics), [a.name for a in found.artifacts])


def test_what_was_logged_with_an_expired_token_is_sent_with_a_new_one(
    trainer: RestartedTrainer, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(token=token(seconds=-3600.0), finish_timeout=0.3)
    run.log({"loss": 0.5}, step=1)
    with pytest.warns(RuntimeWarning, match="The token was not accepted"):
        run.finish()
    (description,) = (tmp_path / "spool").glob("*/run.json")
    assert {"run", "address", "tls"} == set(json.loads(description.read_text())), "no token is on the disk"
    monkeypatch.setenv("FLYWHEEL_TOKEN", token())
    assert [True] == [one.sent for one in sync_spools(tmp_path / "spool", 10.0)]
    record = trainer.runs.record(RunName.parse(run.name))
    assert (RunState.SUCCEEDED, {"loss": 0.5}) == (record.run.state, record.run.metrics)


def test_a_token_that_cannot_be_had_for_a_while_ends_no_program(
    trainer: RestartedTrainer, start: Start
) -> None:
    calls: list[int] = []

    def from_a_file() -> str:
        calls.append(1)
        if len(calls) < 4:
            raise OSError("the token is not mounted yet")
        return token() + "\n"

    run = start(token=from_a_file)
    run.log({"loss": 0.5}, step=1)
    with pytest.warns(RuntimeWarning, match="the token is not mounted yet"):
        run.finish()
    record = trainer.runs.record(RunName.parse(run.name))
    assert (RunState.SUCCEEDED, {"loss": 0.5}) == (record.run.state, record.run.metrics)


def test_a_token_is_not_shown() -> None:
    from flywheel.tracking.endpoint import Endpoint

    assert "secret" not in repr(Endpoint("host:1", "secret"))
