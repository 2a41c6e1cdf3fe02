"""Spools of runs on disk: what a crash or a damaged file leaves of them, and their sending by `sync`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import flywheel as fw
from flywheel.tracking.errors import TrackingError
from flywheel.tracking.spool import Kind, Spool
from flywheel.tracking.syncing import sync_spools
from flywheel_trainer.runs.run import RunName
from tests.support.ports import free_port
from tests.support.servers.restarted_trainer import RestartedTrainer


@pytest.fixture
def trainer() -> Iterator[RestartedTrainer]:
    started = RestartedTrainer()
    started.start()
    yield started
    started.close()


def left_behind(folder: Path, number: int) -> fw.Run:
    """A run whose process ended while no trainer answered."""
    address = f"127.0.0.1:{free_port()}"
    run = fw.run("late", address=address, spool=folder, system_metrics=False, finish_timeout=0.1)
    run.log({"loss": float(number)}, step=0)
    with pytest.warns(RuntimeWarning, match="flywheel runs sync"):
        run.finish()
    return run


def test_a_spool_that_cannot_be_sent_does_not_stop_the_others(
    trainer: RestartedTrainer, tmp_path: Path
) -> None:
    runs = sorted((left_behind(tmp_path, number) for number in range(4)), key=lambda run: run.id)
    damaged, without_tls, half_sent, whole = (run.spool_folder for run in runs)
    (damaged / "run.json").write_text("")
    described = json.loads((without_tls / "run.json").read_text())
    described["tls"] = {"ca_file": str(tmp_path / "gone.pem"), "cert_file": "", "key_file": ""}
    (without_tls / "run.json").write_text(json.dumps(described))
    # A crash of the machine left the file with the position empty: all records are sent again.
    (half_sent / "sent").write_text("")
    found = {one.run: one for one in sync_spools(tmp_path, 10.0, trainer.address)}
    assert [False, False, True, True] == [
        found[name].sent for name in (damaged.name, runs[1].name, runs[2].name, runs[3].name)
    ]
    assert "gone.pem" in found[runs[1].name].problems[0]
    assert "run.json" in found[damaged.name].problems[0]
    assert [True, True, False, False] == [
        folder.exists() for folder in (damaged, without_tls, half_sent, whole)
    ]
    for run in runs[2:]:
        assert {"loss"} == set(trainer.runs.record(RunName.parse(run.name)).run.metrics)


def test_a_record_that_a_crash_cut_off_ends_the_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "one")
    for payload in (b"first", b"second"):
        spool.append(Kind.UPDATE, payload)
    spool.close()
    (segment,) = (tmp_path / "one").glob("*.spool")
    segment.write_bytes(segment.read_bytes()[:-1])
    again = Spool(tmp_path / "one")
    again.append(Kind.UPDATE, b"third")
    sent = []
    while (record := again.next()) is not None:
        sent.append(record.payload)
        again.sent(record)
    assert [b"first", b"third"] == sent
    again.close()


def test_a_spool_is_read_from_where_it_was_sent(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "one")
    with pytest.raises(TrackingError, match="Another process"):
        Spool(tmp_path / "one")
    spool.append(Kind.UPDATE, b"first")
    spool.append(Kind.UPDATE, b"second")
    record = spool.next()
    assert record is not None
    spool.sent(record, generation=3)
    spool.close()
    again = Spool(tmp_path / "one")
    record = again.next()
    assert record is not None
    assert (b"second", 3) == (record.payload, again.state["generation"])
    again.close()
    assert {"segment": 1, "offset": 14, "generation": 3} == json.loads(
        (tmp_path / "one" / "sent").read_text()
    )
