"""Port numbers: configuration and conflicts."""

from __future__ import annotations

import socket

import pytest

from flywheel_local import ports
from flywheel_local.failure import LocalError


def test_default_ports_are_those_of_the_architecture() -> None:
    configured = ports.configured({})
    assert (configured["feature"], configured["monitor"]) == (7101, 7105)
    assert (configured["feature_metrics"], configured["materialize_metrics"]) == (7201, 7206)
    assert (configured["postgres"], configured["triton_grpc"], configured["ray_dashboard"]) == (
        7301,
        7307,
        7311,
    )


def test_port_base_moves_all_ports_and_a_setting_one() -> None:
    configured = ports.configured({"PORT_BASE": "9000", "FLYWHEEL_PORT_KAFKA": "4242"})
    assert configured["feature"] == 9101
    assert configured["kafka"] == 4242
    assert configured["kafka_controller"] == 9305


@pytest.mark.parametrize("text", ["0", "70000", "many", "-1"])
def test_an_invalid_port_number_is_refused(text: str) -> None:
    with pytest.raises(LocalError, match="FLYWHEEL_PORT_REDIS"):
        ports.configured({"FLYWHEEL_PORT_REDIS": text})


def test_two_names_on_one_port_are_refused() -> None:
    with pytest.raises(LocalError) as error:
        ports.configured({"FLYWHEEL_PORT_REDIS": "7301"})
    assert "FLYWHEEL_PORT_REDIS" in str(error.value)
    assert "FLYWHEEL_PORT_POSTGRES" in str(error.value)


def test_a_port_in_use_is_reported_with_its_setting() -> None:
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
