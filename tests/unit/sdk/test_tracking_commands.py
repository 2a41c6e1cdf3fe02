"""Search, comparison, curves, export and notes of runs by the SDK and the CLI."""

from __future__ import annotations

import json
import math
import struct
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import flywheel as fw
from flywheel.cli.main import app
from flywheel.errors import NotFound, Unavailable
from flywheel.tracking.curves import Curve, Series, svg_plot, terminal_plot
from flywheel.tracking.export import export_parquet
from flywheel.tracking.image import write_png
from flywheel.tracking.tensorboard import Event, crc32c, write_events
from flywheel_protos.trainer.v1 import trainer_pb2
from flywheel_trainer.runs.run import RunName
from tests.support.servers.restarted_trainer import RestartedTrainer

LR = [0.1, 0.01, 0.001]


@pytest.fixture(scope="module")
def trainer() -> Iterator[RestartedTrainer]:
    started = RestartedTrainer()
    started.start()
    yield started
    started.close()


@pytest.fixture(scope="module")
def names(trainer: RestartedTrainer, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three runs, whose loss is best at step 1 and whose AUC increases."""
    found = []
    options: Any = {
        "address": trainer.address,
        "spool": tmp_path_factory.mktemp("spool"),
        "system_metrics": False,
    }
    for number, lr in enumerate(LR):
        params, tags = {"lr": lr, "depth": 3}, {"team": "ab"[number % 2]}
        with fw.run("late", params=params, name=f"n{number}", tags=tags, **options) as run:
            for step, loss in enumerate([3.0, 1.0 + number, 2.0]):
                run.log({"loss": loss, "val/auc": number + step / 10}, step=step)
            run.log({"odd": math.nan}, step=0)
            run.log_text("report", "report.txt")
        found.append(run.name)
    return found


@pytest.fixture
def client(trainer: RestartedTrainer, names: list[str]) -> Iterator[fw.SyncClient]:
    with fw.connect(trainer=trainer.address) as opened:
        yield opened


def cli(trainer: RestartedTrainer, *command: str, status: int = 0) -> str:
    """The output of `flywheel`."""
    env = {"FLYWHEEL_TRAINER_ADDRESS": trainer.address, "COLUMNS": "300"}
    result = CliRunner().invoke(app, list(command), env=env)
    assert status == result.exit_code, result.output
    return result.output


def test_runs_are_searched_and_the_best_is_found(client: fw.SyncClient, names: list[str]) -> None:
    def found(*arguments: Any) -> list[int]:
        return [names.index(run.name) for run in client.search_runs(*arguments)]

    assert [2, 1, 0] == found()
    assert [1, 0] == found("params.lr>=0.01")
    assert [0, 2] == found("tags.team=a AND (min.loss<1.5 OR params.lr<=0.001)", "started_at")
    assert [0, 1] == found("", "min.loss", 2)
    assert names[2] == client.best_run("late", "val/auc").name
    assert names[0] == client.best_run("late", "loss", mode="min", of="min").name
    with pytest.raises(fw.TrackingError):
        client.best_run("late", "odd")


def test_curves_and_artifacts_are_read(client: fw.SyncClient, names: list[str], tmp_path: Path) -> None:
    curves = {curve.key: curve for curve in client.run_curves(names[1])}
    assert ([0, 1, 2], [3.0, 2.0, 2.0]) == (curves["loss"].steps, curves["loss"].values)
    assert ["val/auc"] == [curve.key for curve in client.run_curves(names[1], ["val/auc"])]
    path = client.download_run_artifact(names[1], "report.txt", tmp_path / "r.txt")
    assert "report" == path.read_text()
    with pytest.raises(NotFound):
        client.download_run_artifact(names[1], "none.txt", tmp_path / "none.txt")
    assert ["r.txt"] == [one.name for one in tmp_path.iterdir() if not one.name.startswith(".")]


def test_the_command_line_searches_and_compares(trainer: RestartedTrainer, names: list[str]) -> None:
    ids = [name.rpartition("/")[2] for name in names]
    shown = cli(trainer, "runs", "search", "params.lr<0.05", "--order-by", "-max.val/auc")
    assert ids[0] not in shown
    assert shown.index(ids[2]) < shown.index(ids[1])
    assert "INVALID_FILTER" in cli(trainer, "runs", "search", "lr<0.05", status=1)
    compared = json.loads(cli(trainer, "--json", "runs", "compare", ids[0], ids[2]))
    assert ["0.1", "0.001"] == compared["params.lr"]
    assert ["2 [1, 3]", "2 [2, 3]"] == compared["metrics.loss"]
    assert ["nan [nan, nan]"] * 2 == compared["metrics.odd"]
    differing = cli(trainer, "runs", "compare", ids[0], ids[2])
    assert "params.lr" in differing
    assert "params.depth" not in differing
    assert ids[0] in cli(trainer, "runs", "best", "late", "loss", "--mode", "min", "--of", "min")
    assert ids[2] in cli(trainer, "runs", "best", "late", "val/auc")


def test_the_command_line_edits_deletes_and_restores(trainer: RestartedTrainer, names: list[str]) -> None:
    run = names[1].rpartition("/")[2]
    edited = cli(trainer, "runs", "edit", run, "--name", "other", "--tag", "x=1=2", "--notes", "# why")
    assert all(text in edited for text in ("other", "x: 1=2", "# why"))
    assert "is not KEY=VALUE" in cli(trainer, "runs", "edit", run, "--tag", "x", status=2)
    cli(trainer, "runs", "delete", run)
    assert run not in cli(trainer, "runs", "search")
    assert run in cli(trainer, "runs", "search", "--deleted")
    cli(trainer, "runs", "restore", run)
    assert run in cli(trainer, "runs", "list")
    cli(trainer, "runs", "edit", run, "--remove-tag", "x")
    assert "x: 1=2" not in cli(trainer, "runs", "show", run)


def test_the_command_line_purges_deleted_runs(trainer: RestartedTrainer, tmp_path: Path) -> None:
    with fw.run("purged", address=trainer.address, spool=tmp_path, system_metrics=False) as run:
        run.log({"loss": 0.5})
    cli(trainer, "runs", "delete", run.name)
    assert "0 runs and 0 bytes removed" in cli(trainer, "runs", "purge", "--older-than", "1d")
    record = trainer.runs.record(RunName.parse(run.name))
    assert record.run.deleted_at is not None
    record.run = replace(record.run, deleted_at=record.run.deleted_at - timedelta(days=2))
    shown = cli(trainer, "runs", "purge", "--older-than", "1d", "--dry-run")
    assert all(text in shown for text in (run.name, "1 runs", "would be removed"))
    assert "1 runs and 0 bytes removed" in cli(trainer, "runs", "purge", "--older-than", "1d")
    assert run.id not in cli(trainer, "runs", "search", "--deleted")
    assert "at least one hour" in cli(trainer, "runs", "purge", "--older-than", "10m", status=1)


def test_the_command_line_draws_curves(trainer: RestartedTrainer, names: list[str], tmp_path: Path) -> None:
    ids = [name.rpartition("/")[2] for name in names]
    drawn = cli(trainer, "runs", "plot", *ids, "--metric", "loss", "--height", "8", "--width", "40")
    lines = drawn.splitlines()
    assert 8 + 2 + 3 == len([line for line in lines if line.strip()])
    assert "n0 loss" in drawn
    svg = tmp_path / "a.svg"
    cli(trainer, "runs", "plot", *ids, "-m", "loss", "-m", "odd", "--svg", str(svg))
    document = ET.parse(svg)
    lines_drawn = document.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert 3 == len(lines_drawn)
    assert "n2 odd (1 not finite)" in svg.read_text()
    assert "no points" in cli(trainer, "runs", "plot", ids[0], "-m", "none", status=1)


def test_the_command_line_draws_curves_as_png(
    trainer: RestartedTrainer, names: list[str], tmp_path: Path
) -> None:
    image = pytest.importorskip("matplotlib.image")
    ids = [name.rpartition("/")[2] for name in names]
    png = tmp_path / "a.png"
    cli(trainer, "runs", "plot", *ids[:2], "-m", "loss", "--png", str(png))
    pixels = image.imread(png)
    assert (450, 800) == pixels.shape[:2]
    drawn = {tuple(color) for color in (255 * pixels[..., :3]).round().astype(int).reshape(-1, 3)}
    assert drawn >= {(0x1F, 0x77, 0xB4), (0xD6, 0x27, 0x28)}
    assert (0x2C, 0xA0, 0x2C) not in drawn


def test_png_files_need_an_extra(
    trainer: RestartedTrainer, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run = names[0].rpartition("/")[2]
    shown = cli(trainer, "runs", "plot", run, "-m", "loss", "--png", str(tmp_path / "a.png"), status=1)
    assert "flywheel[plot]" in shown


@pytest.mark.parametrize("values", [[], [math.nan], [1.0], [1e308, -1e308], [1.0, math.inf, math.nan, 2.0]])
def test_every_curve_can_be_drawn_as_png(values: list[float], tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    steps = list(range(len(values)))
    write_png(tmp_path / "a.png", [Series("<a $ & b$>", Curve("loss", steps, values, steps))], "$title")
    assert (450, 800) == image.imread(tmp_path / "a.png").shape[:2]


def test_runs_are_exported_to_parquet(trainer: RestartedTrainer, names: list[str], tmp_path: Path) -> None:
    cli(trainer, "runs", "export", str(tmp_path), "--where", "params.lr<0.05")
    rows = pq.read_table(tmp_path / "runs.parquet").to_pylist()
    assert set(names[1:]) == {row["run"] for row in rows}
    row = next(row for row in rows if row["run"] == names[2])
    assert ({"lr": "0.001", "depth": "3"}, 2.0) == (dict(row["params"]), dict(row["min"])["loss"])
    points = pq.read_table(tmp_path / "points.parquet").to_pylist()
    auc = [(p["step"], p["value"]) for p in points if (p["run"], p["key"]) == (names[2], "val/auc")]
    assert [(0, 2.0), (1, 2.1), (2, 2.2)] == auc
    assert any(math.isnan(p["value"]) for p in points if p["key"] == "odd")


async def test_an_export_that_fails_leaves_the_former_points(tmp_path: Path) -> None:
    class Trainer:
        def __init__(self, *answers: list[Curve]) -> None:
            self.answers = list(answers)

        async def run_curves(self, run: str) -> list[Curve]:
            if not self.answers:
                raise Unavailable(f"The trainer does not answer for {run}.")
            return self.answers.pop(0)

    runs = [trainer_pb2.Run(name=f"projects/p/runs/{n}") for n in range(2)]
    curve = Curve("loss", [1], [0.5], [1_700_000_000_000_000])
    await export_parquet(cast("Any", Trainer([curve], [curve])), runs, tmp_path)
    with pytest.raises(Unavailable):
        await export_parquet(cast("Any", Trainer([])), runs, tmp_path)
    assert [run.name for run in runs] == pq.read_table(tmp_path / "points.parquet")["run"].to_pylist()


def test_event_files_have_the_format_of_tensorboard(tmp_path: Path) -> None:
    # The check value of CRC-32C, and the vectors of RFC 3720.
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    curve = Curve("loss", [1, -2, 2**40], [0.5, math.inf, 0.25], [1_700_000_000_500_000, 2, 3])
    data = write_events(tmp_path / "run", [curve], "1.host").read_bytes()
    events = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert unmasked(data[8:12]) == crc32c(data[:8])
        assert unmasked(data[12 + length : 16 + length]) == crc32c(data[12 : 12 + length])
        events.append(data[12 : 12 + length])
        data = data[16 + length :]
    # Fields by hand: 1 wall_time (double), 2 step (varint), 5 summary of 1 value of 1 tag and 2 float.
    assert b"\x1a\x0dbrain.Event:2" == events[0]
    value = b"\x0a\x04loss" + b"\x15" + struct.pack("<f", 0.5)
    summary = b"\x0a" + bytes([len(value)]) + value
    time = b"\x09" + struct.pack("<d", 1_700_000_000.5)
    assert time + b"\x10\x01" + b"\x2a" + bytes([len(summary)]) + summary == events[1]
    assert [-2, 2**40] == [Event.FromString(event).step for event in events[2:]]


def unmasked(masked: bytes) -> int:
    (value,) = struct.unpack("<I", masked)
    rotated = (value - 0xA282EAD8) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF


def test_runs_are_exported_to_tensorboard(
    trainer: RestartedTrainer, names: list[str], tmp_path: Path
) -> None:
    cli(trainer, "runs", "export", str(tmp_path), "--format", "tensorboard")
    assert {name.rpartition("/")[2] for name in names} == {path.name for path in tmp_path.iterdir()}
    assert 3 == len(list(tmp_path.glob("*/events.out.tfevents.*")))


@pytest.mark.parametrize(
    "values",
    [[], [math.nan], [1.0], [1.0, 1.0], [0.0, 0.0], [1e308, -1e308], [1.0, math.inf, math.nan, 2.0]],
)
def test_every_curve_can_be_drawn(values: list[float]) -> None:
    steps = list(range(len(values)))
    series = [Series("<a & b>", Curve("loss", steps, values, steps))]
    text = "".join(piece for piece, _ in terminal_plot(series, 20, 5))
    assert "<a & b>" in text
    ET.fromstring(svg_plot(series, "<title>"))


def test_a_rising_curve_goes_from_the_lower_left_to_the_upper_right() -> None:
    curve = Curve("loss", list(range(100)), [float(i) for i in range(100)], [0] * 100)
    text = "".join(piece for piece, _ in terminal_plot([Series("up", curve)], 40, 10))
    rows = [line[13:] for line in text.splitlines()[:10]]
    first = [next((i for i, c in enumerate(row) if c != chr(0x2800)), None) for row in rows]
    drawn = [column for column in first if column is not None]
    assert drawn == sorted(drawn, reverse=True)
    last = max(i for i, character in enumerate(rows[0]) if character != chr(0x2800))
    assert (0, 39) == (drawn[-1], last)
