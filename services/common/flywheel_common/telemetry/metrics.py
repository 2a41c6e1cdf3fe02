"""Prometheus metrics of every service: rate, errors, duration (RED) per method, and the /metrics page."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from flywheel_common.config import split_address

LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Seconds. 5 ms and 20 ms are the latency budgets of feature lookup and Predict."""


class RedMetrics:
    """Counter by method and code, histogram of seconds by method, gauge of calls in flight."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._handled = Counter(
            "flywheel_rpc_handled", "RPCs finished", ["method", "code"], registry=registry
        )
        self._seconds = Histogram(
            "flywheel_rpc_seconds",
            "Seconds from request to response",
            ["method"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.in_flight = Gauge("flywheel_rpc_in_flight", "RPCs running now", registry=registry)
        self._counters: dict[tuple[str, str], Counter] = {}
        self._histograms: dict[str, Histogram] = {}

    def observe(self, method: str, code: str, seconds: float) -> None:
        """Counts one finished RPC."""
        counter = self._counters.get((method, code))
        if counter is None:
            counter = self._counters[method, code] = self._handled.labels(method, code)
            self._histograms.setdefault(method, self._seconds.labels(method))
        counter.inc()
        self._histograms[method].observe(seconds)


_shared: WeakKeyDictionary[CollectorRegistry, RedMetrics] = WeakKeyDictionary()


def red_metrics(registry: CollectorRegistry = REGISTRY) -> RedMetrics:
    """The RED metrics of a registry, created once, because a name can be registered only once."""
    if registry not in _shared:
        _shared[registry] = RedMetrics(registry)
    return _shared[registry]


_background: WeakKeyDictionary[CollectorRegistry, Counter] = WeakKeyDictionary()


def background_failures(registry: CollectorRegistry = REGISTRY) -> Counter:
    """The counter of failures of background tasks, with the label `task`; once per registry."""
    if registry not in _background:
        _background[registry] = Counter(
            "flywheel_background_failures", "Failures of background tasks", ["task"], registry=registry
        )
    return _background[registry]


class MetricsPage:
    """The /metrics page on host:port, served by a thread."""

    def __init__(self, address: str, registry: CollectorRegistry = REGISTRY) -> None:
        host, port = split_address(address)
        self._server, self._thread = start_http_server(port, host, registry)
        self.port: int = self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
