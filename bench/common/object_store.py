"""Start, memory and speed of the local object store: `python bench/common/object_store.py`."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import botocore.session
import psutil
from botocore.config import Config

from flywheel_local.backends import Backends

SMALL, LARGE = os.urandom(4096), os.urandom(64 * 1024 * 1024)
COUNT = 500
IDLE_SECONDS = 5.0


def seconds(action: Callable[[], object]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Backends({"s3"}, directory=Path(folder)) as backends:
        s3 = backends.s3
        client = botocore.session.get_session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=s3.endpoint,
            aws_access_key_id=s3.access_key,
            aws_secret_access_key=s3.secret_key,
            config=Config(s3={"addressing_style": "path"}),
        )

        def put(key: str, body: bytes) -> None:
            client.put_object(Bucket="bench", Key=key, Body=body)

        def get(key: str) -> None:
            client.get_object(Bucket="bench", Key=key)["Body"].read()

        def memory() -> str:
            assert s3.process is not None
            process = psutil.Process(s3.process.pid)
            return f"{process.memory_full_info().pss / 2**20:.0f} MiB"

        def times(key: str, action: Callable[[], object]) -> None:
            print(f"{key:32} {seconds(action):6.2f} s")

        print(f"{'ready, new data':32} {s3.started_in_seconds:6.2f} s   {memory()}")
        s3.create_bucket("bench")
        times("first put into a bucket", lambda: put("first", SMALL))
        times(f"{COUNT} puts of 4 KiB", lambda: [put(f"small/{n}", SMALL) for n in range(COUNT)])
        times(f"{COUNT} gets of 4 KiB", lambda: [get(f"small/{n}") for n in range(COUNT)])
        times("put of 64 MiB", lambda: put("large", LARGE))
        times("get of 64 MiB", lambda: get("large"))
        print(f"{'memory after this':32} {memory():>12}")
        assert s3.process is not None
        before = psutil.Process(s3.process.pid).cpu_times()
        time.sleep(IDLE_SECONDS)
        after = psutil.Process(s3.process.pid).cpu_times()
        used = after.user + after.system - before.user - before.system
        print(f"{'CPU while idle':32} {used / IDLE_SECONDS:8.1%}")
        times("stop", s3.stop)
        s3.start()
        print(f"{'ready, existing data':32} {s3.started_in_seconds:6.2f} s   {memory()}")


if __name__ == "__main__":
    main()
