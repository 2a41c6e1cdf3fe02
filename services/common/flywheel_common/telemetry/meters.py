"""OpenTelemetry metrics, off unless an OTLP endpoint is set.

They are for figures of the business, such as costs, that go where the traces go; the operation of a process
is on its /metrics page.
"""

from __future__ import annotations

from typing import Any

from opentelemetry.metrics import Meter, NoOpMeter

_OFF = NoOpMeter("flywheel")


class Metering:
    """The meter of the process; without an endpoint it counts nothing."""

    def __init__(self, meter: Meter = _OFF, provider: Any = None) -> None:
        self.meter = meter
        self._provider = provider

    def close(self) -> None:
        """Sends what was counted since the last export."""
        if self._provider is not None:
            self._provider.shutdown()


_current = [Metering()]


def meter() -> Meter:
    """The meter of the process, as `configure_metering` left it."""
    return _current[0].meter


def configure_metering(service: str, otlp_endpoint: str = "", reader: Any = None) -> Metering:
    """Configures metrics: with the SDK if an endpoint, or in tests a reader, is given."""
    if not otlp_endpoint and reader is None:
        _current[0] = Metering()
        return _current[0]
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource

    if reader is None:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        insecure = not otlp_endpoint.startswith("https")
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=otlp_endpoint, insecure=insecure))
    provider = MeterProvider(
        [reader], resource=Resource.create({"service.name": service}), shutdown_on_exit=False
    )
    _current[0] = Metering(provider.get_meter("flywheel"), provider)
    return _current[0]
