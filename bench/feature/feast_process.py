"""Feast's side of the comparison; runs in the environment of the peers (.local/peers) and imports nothing of
ours.

    feast_process.py materialize FOLDER REDIS ROWS   prints rows per second, into an empty store
    feast_process.py requests FOLDER                 writes the request bodies for the servers
    feast_process.py join FOLDER duckdb|dask         prints seconds of get_historical_features, and rows

FOLDER contains wide.parquet (materialize), or spine.parquet and rows.parquet (join).
"""

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

WIDE = [f"f{i}" for i in range(50)]
JOINED = [f"v{i}" for i in range(10)]
SETTINGS = """
project: bench
provider: local
registry:
  registry_type: file
  path: {folder}/registry.db
  cache_ttl_seconds: 3600
entity_key_serialization_version: 3
offline_store:
  type: {offline}
online_store:
  type: {online}
"""


def store_of(
    folder: Path, file: str, names: list, offline: str, online: str, created: str = ""
) -> FeatureStore:
    (folder / "feature_store.yaml").write_text(SETTINGS.format(folder=folder, offline=offline, online=online))
    store = FeatureStore(str(folder))
    driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.STRING)
    source = FileSource(path=str(folder / file), timestamp_field="at", created_timestamp_column=created)
    view = FeatureView(
        name="wide",
        entities=[driver],
        ttl=timedelta(days=9999),
        schema=[Field(name=n, dtype=Float64) for n in names],
        source=source,
        online=True,
    )
    store.apply([driver, view])
    return store


def materialize(folder: Path, redis: str, rows: int) -> None:
    store = store_of(folder, "wide.parquet", WIDE, "duckdb", f"redis\n  connection_string: {redis}")
    now = datetime.now(UTC)
    started = time.perf_counter()
    store.materialize(now - timedelta(days=30), now + timedelta(days=1))
    print(rows / (time.perf_counter() - started))


def requests(folder: Path) -> None:
    from feast.protos.feast.serving.ServingService_pb2 import FeatureList, GetOnlineFeaturesRequest
    from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value

    names = [f"wide:{n}" for n in WIDE]
    for count in (1, 100):
        ids = [f"driver-{i:08d}" for i in range(count)]
        body = json.dumps({"features": names, "entities": {"driver": ids}})
        (folder / f"http_{count}").write_text(body)
        values = RepeatedValue(val=[Value(string_val=i) for i in ids])
        request = GetOnlineFeaturesRequest(features=FeatureList(val=names), entities={"driver": values})
        (folder / f"grpc_{count}").write_bytes(request.SerializeToString())


def join(folder: Path, engine: str) -> None:
    import pandas as pd

    store = store_of(folder, "rows.parquet", JOINED, engine, f"sqlite\n  path: {folder}/online.db", "created")
    spine = pd.read_parquet(folder / "spine.parquet").rename(columns={"asked_at": "event_timestamp"})
    started = time.perf_counter()
    job = store.get_historical_features(entity_df=spine, features=[f"wide:{n}" for n in JOINED])
    table = job.to_arrow()
    seconds = time.perf_counter() - started
    print(seconds, table.num_rows)


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    if what == "materialize":
        materialize(folder, sys.argv[3], int(sys.argv[4]))
    elif what == "requests":
        requests(folder)
    else:
        join(folder, sys.argv[3])


if __name__ == "__main__":
    main()
