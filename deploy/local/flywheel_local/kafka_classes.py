"""Records the cache of Kafka's loaded and linked classes (JEP 514), with which a broker starts faster."""

from __future__ import annotations

import tempfile
from pathlib import Path

from flywheel_local import ports
from flywheel_local.kafka import Kafka
from flywheel_local.kafka_jars import class_cache
from flywheel_local.layout import KAFKA_JARS

_WRITE_SECONDS = 180.0


class _Recorded(Kafka):
    """A broker that writes the cache when it stops."""

    def class_options(self) -> list[str]:
        return [f"-XX:AOTCacheOutput={self.data / 'classes.aot'}"]


def record() -> None:
    """Writes the cache for the installed jars and Java, unless it is there. Takes the start and stop of a
    broker."""
    file = class_cache()
    if file.exists():
        return
    for outdated in KAFKA_JARS.glob("*.aot"):
        outdated.unlink()
    with tempfile.TemporaryDirectory(prefix=".classes-", dir=KAFKA_JARS) as folder:
        broker = _Recorded(Path(folder), Path(folder), ports.free(Kafka.port_names))
        try:
            broker.start()
            assert broker.process is not None
            broker.process.stop(_WRITE_SECONDS)
        finally:
            broker.stop()
        written = broker.data / "classes.aot"
        if written.exists():  # else Java had too little time, and Kafka starts as before
            written.rename(file)
