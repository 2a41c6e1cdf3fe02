"""Ports: one number moves them all, a setting moves one, and a conflict is said in words that help."""

from __future__ import annotations

import socket

import pytest

from flywheel_local import ports
from flywheel_local.failure import LocalError


def test_defaults_are_those_of_the_architecture() -> None:
    configured = ports.configured({})
    assert (configured["feature"], configured["monitor"]) == (7101, 7105)
    assert (configured["feature_metrics"], configured["materialize_metrics"]) == (7201, 7206)
    assert (configured["postgres"], configured["triton_grpc"], configured["ray_dashboard"]) == (
        7301,
        7307,
        7311,
    )


def test_a_base_moves_every_port_and_a_setting_only_one() -> None:
    configured = ports.configured({"PORT_BASE": "9000", "FLYWHEEL_PORT_KAFKA": "4242"})
    assert configured["feature"] == 9101
    assert configured["kafka"] == 4242
    assert configured["kafka_controller"] == 9305


@pytest.mark.parametrize("text", ["0", "70000", "many", "-1"])
def test_a_number_that_is_no_port_is_refused_by_name(text: str) -> None:
    with pytest.raises(LocalError, match="FLYWHEEL_PORT_REDIS"):
        ports.configured({"FLYWHEEL_PORT_REDIS": text})


def test_two_names_on_one_port_are_refused_by_both_names() -> None:
    with pytest.raises(LocalError) as error:
        ports.configured({"FLYWHEEL_PORT_REDIS": "7301"})
    assert "FLYWHEEL_PORT_REDIS" in str(error.value)
    assert "FLYWHEEL_PORT_POSTGRES" in str(error.value)


def test_a_taken_port_is_named_with_the_setting_that_moves_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(LocalError) as error:
            ports.require_free("kafka", port)
    assert str(port) in str(error.value)
    assert "FLYWHEEL_PORT_KAFKA" in str(error.value)


def test_free_ports_differ_and_can_be_bound() -> None:
    found = ports.free(["a", "b", "c"])
    assert len(set(found.values())) == 3
    for port in found.values():
        socket.create_server(("127.0.0.1", port)).close()
