"""Beside Feast: online reads against its HTTP and gRPC servers, materialization, and the point-in-time join with two of its engines.

Feast lives in an environment of its own: `make bench-peers` makes it. Its Redis is ours, another database of it.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from bench import h2load, measure
from bench.feature import definitions as d
from bench.feature import join as ours_join
from bench.feature import materialize as ours_materialize
from bench.feature import online
from bench.feature.room import Room
from flywheel_local import ports
from flywheel_local.layout import LOCAL
from flywheel_local.process import Process

PEERS = LOCAL / "peers" / "bin"
SIDE = Path(__file__).with_name("feast_side.py")
ROWS = 20_000
ROUNDS = 3
GRPC = "/GrpcFeatureServer/GetOnlineFeatures"
JOIN_SECONDS = 200
START_SECONDS = 60
ENVIRONMENT = {"FEAST_USAGE": "False", "PYTHONWARNINGS": "ignore", "PATH": f"{PEERS}:/usr/bin:/bin"}


def run_online(room: Room) -> Iterable[measure.Row]:
    _require()
    h2load.require()
    folder = room.folder / "feast"
    folder.mkdir(exist_ok=True)
    frame = d.wide_rows(ROWS)
    frame.write_parquet(folder / "wide.parquet")
    room.write_table(d.WIDE_URI + "part.parquet", frame)
    url = urlsplit(room.backends.redis.url)
    redis = f"{url.hostname}:{url.port},db=1,password={url.password}"

    def theirs() -> float:
        room.redis().flushall()
        return float(_side("materialize", folder, redis, str(ROWS)).split()[-1])

    pairs = measure.alternating(ROUNDS, lambda: ours_materialize.ours(room, ROWS), theirs)
    yield measure.compared(
        f"materialize 50 features, {ROWS:,} rows", "rows/s", "Feast", pairs, measure.at_least(12)
    )
    room.redis().flushall()
    ours_materialize.ours(room, ROWS)
    theirs_again = _side("materialize", folder, redis, str(ROWS))
    assert theirs_again
    _side("questions", folder)
    yield from _servers(room, folder)


def _servers(room: Room, folder: Path) -> Iterable[measure.Row]:
    questions = room.ask(lambda client: online.questions(client, ("fifty_1", "fifty_100")))
    addresses = {kind: f"127.0.0.1:{ports.free([kind])[kind]}" for kind in ("http", "grpc")}
    processes = [_serve(room, folder, kind, address) for kind, address in addresses.items()]
    for entities, bound in ((1, 6), (100, 40)):
        q = questions[f"fifty_{entities}"]
        calls = 2_000 if entities == 1 else 300
        http = (folder / f"http_{entities}").read_bytes()
        grpc = (folder / f"grpc_{entities}").read_bytes()
        ours, by_http, by_grpc = [], [], []
        for _ in range(ROUNDS):
            ours.append(
                h2load.load(
                    room.address,
                    online.METHOD,
                    q.message,
                    len(q.answer),
                    concurrent=16,
                    calls=online.CALLS,
                ).per_second
            )
            by_http.append(
                h2load.load_http(
                    addresses["http"], "/get-online-features", http, concurrent=16, calls=calls
                ).per_second
            )
            by_grpc.append(
                h2load.load(addresses["grpc"], GRPC, grpc, None, concurrent=16, calls=calls).per_second
            )
        faster = "HTTP" if sorted(by_http)[ROUNDS // 2] > sorted(by_grpc)[ROUNDS // 2] else "gRPC"
        label = "entity" if entities == 1 else "entities"
        for kind, rates in (("HTTP", by_http), ("gRPC", by_grpc)):
            yield measure.compared(
                f"GetOnlineFeatures, 50 features, {entities} {label}, beside Feast's {kind} server", "requests/s",
                f"Feast, {kind}{' (the faster)' if kind == faster else ''}", list(zip(ours, rates, strict=True)),
                measure.at_least(bound) if kind == faster else None,
            )  # fmt: skip
    for process in processes:
        process.stop()


def run_offline(room: Room) -> Iterable[measure.Row]:
    """Both read the rows' Parquet file and get the spine in memory."""
    _require()
    folder = room.folder / "join"
    if not folder.exists():
        ours_join.write_tables(folder)
    for engine, bound, rounds in (("duckdb", 3, 2), ("dask", 10, 1)):
        pairs = []
        for _ in range(rounds):
            ours = ours_join.side("ours_from_file", folder, True)[0]
            theirs, rows = _side("join", folder, engine, seconds=JOIN_SECONDS).split()[-2:]
            pairs.append((1 / ours, 1 / float(theirs)))
            if int(rows) != ours_join.ROWS:
                # Its pandas engine loses spine rows that match nothing; its time counts all the same.
                measure.console.print(
                    f"  Feast on {engine} answered {int(rows):,} of {ours_join.ROWS:,} spine rows"
                )
        yield measure.compared(
            f"point-in-time join, 1 M × 1 M, created times kept, from a Parquet file, beside Feast on {engine}", "joins/s",
            f"Feast, {engine}", pairs, measure.at_least(bound),
        )  # fmt: skip


def _require() -> None:
    if not (PEERS / "python").exists():
        raise h2load.ToolMissing("Feast is not installed: make bench-peers installs it into .local/peers")


def _side(*arguments: object, seconds: float = 280) -> str:
    command = [str(PEERS / "python"), str(SIDE), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=seconds)
    if done.returncode:
        raise RuntimeError(f"Feast, {arguments[0]}: {done.stderr[-2000:]}")
    return done.stdout


def _serve(room: Room, folder: Path, kind: str, address: str) -> Process:
    """One process that listens, its registry cached, no access log: its own best case."""
    host, port = address.split(":")
    how: dict[str, list[str]] = {
        "http": [
            "serve", "--host", host, "--port", port, "--no-access-log", "--workers", "1", "--max-requests", "0",
            "--max-requests-jitter", "0", "--registry_ttl_sec", "3600",
        ],
        "grpc": ["listen", "--address", address, "--registry_ttl_sec", "3600"],
    }  # fmt: skip
    process = Process(
        f"feast-{kind}",
        [PEERS / "feast", "-c", folder, *how[kind]],
        log=room.folder / "log" / f"feast-{kind}.log",
        environment=ENVIRONMENT,
    )
    room.keep(process)
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            if not process.running or time.monotonic() > deadline:
                raise RuntimeError(f"Feast's {kind} server did not start: {process.log}") from None
            time.sleep(0.2)
        else:
            return process
