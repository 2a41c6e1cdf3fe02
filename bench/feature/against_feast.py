"""Comparison with Feast: online reads from its HTTP and gRPC servers, materialization, joins with two of its
engines.

Feast is installed in its own environment by `make bench-peers`. It uses another database of the same Redis.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from bench import h2load, measure
from bench.common.peer import output_of
from bench.feature import definitions as d
from bench.feature import join as ours_join
from bench.feature import materialize as ours_materialize
from bench.feature import online
from bench.feature.deployment import FeatureDeployment
from flywheel_local import ports
from flywheel_local.layout import LOCAL
from flywheel_local.process import Process

PEERS = LOCAL / "peers" / "bin"
SCRIPT = Path(__file__).with_name("feast_process.py")
ROWS = 20_000
ROUNDS = 3
GRPC = "/GrpcFeatureServer/GetOnlineFeatures"
JOIN_SECONDS = 200
START_SECONDS = 60
ENVIRONMENT = {"FEAST_USAGE": "False", "PYTHONWARNINGS": "ignore", "PATH": f"{PEERS}:/usr/bin:/bin"}


def run_online(deployment: FeatureDeployment) -> Iterable[measure.Row]:
    _require()
    folder = deployment.folder / "feast"
    folder.mkdir(exist_ok=True)
    frame = d.wide_rows(ROWS)
    frame.write_parquet(folder / "wide.parquet")
    deployment.write_table(d.WIDE_URI + "part.parquet", frame)
    url = urlsplit(deployment.backends.redis.url)
    redis = f"{url.hostname}:{url.port},db=1,password={url.password}"

    def theirs() -> float:
        deployment.redis().flushall()
        return float(_run_feast("materialize", folder, redis, str(ROWS)).split()[-1])

    pairs = measure.alternating(ROUNDS, lambda: ours_materialize.ours(deployment, ROWS), theirs)
    yield measure.compared(
        f"materialize 50 features, {ROWS:,} rows", "rows/s", "Feast", pairs, measure.at_least(12)
    )
    deployment.redis().flushall()
    ours_materialize.ours(deployment, ROWS)
    assert _run_feast("materialize", folder, redis, str(ROWS))
    _run_feast("requests", folder)
    yield from _servers(deployment, folder)


def _servers(deployment: FeatureDeployment, folder: Path) -> Iterable[measure.Row]:
    h2load.require()
    requests = deployment.call(lambda client: online.requests(client, ("fifty_1", "fifty_100")))
    addresses = {kind: f"127.0.0.1:{ports.free([kind])[kind]}" for kind in ("http", "grpc")}
    processes = [_serve(deployment, folder, kind, address) for kind, address in addresses.items()]
    for entities, bound in ((1, 6), (100, 40)):
        request = requests[f"fifty_{entities}"]
        calls = 2_000 if entities == 1 else 300
        http = (folder / f"http_{entities}").read_bytes()
        grpc = (folder / f"grpc_{entities}").read_bytes()
        ours, by_http, by_grpc = [], [], []
        for _ in range(ROUNDS):
            ours.append(request.load(deployment.address, concurrent=16, calls=online.CALLS).per_second)
            load = h2load.load_http(
                addresses["http"], "/get-online-features", http, concurrent=16, calls=calls
            )
            by_http.append(load.per_second)
            load = h2load.load(addresses["grpc"], GRPC, grpc, None, concurrent=16, calls=calls)
            by_grpc.append(load.per_second)
        faster = "HTTP" if sorted(by_http)[ROUNDS // 2] > sorted(by_grpc)[ROUNDS // 2] else "gRPC"
        label = "entity" if entities == 1 else "entities"
        for kind, rates in (("HTTP", by_http), ("gRPC", by_grpc)):
            yield measure.compared(
                f"GetOnlineFeatures, 50 features, {entities} {label}, beside Feast's {kind} server",
                "requests/s",
                f"Feast, {kind}{' (the faster)' if kind == faster else ''}",
                list(zip(ours, rates, strict=True)),
                measure.at_least(bound) if kind == faster else None,
            )
    for process in processes:
        process.stop()


def run_offline(deployment: FeatureDeployment) -> Iterable[measure.Row]:
    """Both sides read the rows from a Parquet file and get the spine in memory."""
    _require()
    folder = deployment.folder / "join"
    if not folder.exists():
        ours_join.write_tables(folder)
    for engine, bound, rounds in (("duckdb", 3, 2), ("dask", 10, 1)):
        pairs = []
        for _ in range(rounds):
            ours = ours_join.run_join("ours_from_file", folder, True)[0]
            theirs, rows = _run_feast("join", folder, engine, seconds=JOIN_SECONDS).split()[-2:]
            pairs.append((1 / ours, 1 / float(theirs)))
            if int(rows) != ours_join.ROWS:
                # Feast's pandas engine drops spine rows without a match; its time is used as it is.
                measure.console.print(
                    f"  Feast on {engine} returned {int(rows):,} of {ours_join.ROWS:,} spine rows"
                )
        what = "point-in-time join, 1 M × 1 M, created times kept, from a Parquet file"
        yield measure.compared(
            f"{what}, beside Feast on {engine}",
            "joins/s",
            f"Feast, {engine}",
            pairs,
            measure.at_least(bound),
        )


def _require() -> None:
    if not (PEERS / "python").exists():
        raise h2load.ToolMissing("Feast is not installed: make bench-peers installs it into .local/peers")


def _run_feast(*arguments: object, seconds: float = 280) -> str:
    command = [PEERS / "python", SCRIPT, *map(str, arguments)]
    return output_of(f"Feast, {arguments[0]}", command, seconds, ENVIRONMENT)


def _serve(deployment: FeatureDeployment, folder: Path, kind: str, address: str) -> Process:
    """A Feast server in its fastest configuration: one process, cached registry, no access log."""
    host, port = address.split(":")
    http = f"serve --host {host} --port {port} --no-access-log --workers 1"
    arguments = {
        "http": f"{http} --max-requests 0 --max-requests-jitter 0 --registry_ttl_sec 3600",
        "grpc": f"listen --address {address} --registry_ttl_sec 3600",
    }
    process = Process(
        f"feast-{kind}",
        [PEERS / "feast", "-c", folder, *arguments[kind].split()],
        log=deployment.folder / "log" / f"feast-{kind}.log",
        environment=ENVIRONMENT,
    )
    deployment.keep(process)
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
