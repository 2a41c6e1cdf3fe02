"""OpenTelemetry traces, off unless an OTLP endpoint is set.

`start_server_span` decides once per call whether it is sampled: as its parent, else at random with `ratio`.
Only sampled calls get a span. `traceparent` (in gRPC metadata and event envelopes) carries the decision to
callees.
"""

from __future__ import annotations

import random
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags

_FORCE = otel_context.create_key("flywheel-sample")


class Tracing:
    """Starts spans. Without an endpoint `enabled` is False: calls have trace ids, but no spans."""

    def __init__(self, tracer: trace.Tracer | None = None, ratio: float = 0.01, provider: Any = None) -> None:
        self.enabled = tracer is not None
        self._tracer = tracer
        self._ratio = ratio
        self._provider = provider

    def start_server_span(self, method: str, parent: str) -> tuple[str, Span | None]:
        """Returns the traceparent of this call and its span if sampled. `parent` is the caller's traceparent
        or empty."""
        context = parse_traceparent(parent) if parent else None
        sampled = context.trace_flags.sampled if context is not None else random.random() < self._ratio
        if self._tracer is None or not sampled:
            if context is not None:
                return parent, None
            return f"00-{random.getrandbits(128):032x}-{random.getrandbits(64) or 1:016x}-00", None
        base = otel_context.set_value(_FORCE, True)
        if context is not None:
            base = trace.set_span_in_context(NonRecordingSpan(context), base)
        span = self._tracer.start_span(method, context=base, kind=SpanKind.SERVER)
        return format_traceparent(span.get_span_context()), span

    def start_client_span(self, method: str, parent: str) -> tuple[str, Span | None]:
        """The same for an outgoing call; a span only inside a sampled call."""
        if self._tracer is None or not parent.endswith("-01"):
            return parent, None
        context = parse_traceparent(parent)
        if context is None:
            return parent, None
        base = trace.set_span_in_context(NonRecordingSpan(context), otel_context.get_current())
        span = self._tracer.start_span(method, context=base, kind=SpanKind.CLIENT)
        return format_traceparent(span.get_span_context()), span

    def close(self) -> None:
        """Sends the remaining spans."""
        if self._provider is not None:
            self._provider.shutdown()


_current = [Tracing()]


def tracing() -> Tracing:
    """The tracing of the process; without spans until `configure_telemetry` is called with an endpoint."""
    return _current[0]


def configure_telemetry(
    service: str, otlp_endpoint: str = "", ratio: float = 0.01, exporter: Any = None
) -> Tracing:
    """Configures tracing: with the SDK if an endpoint, or in tests an exporter, is given."""
    if not otlp_endpoint and exporter is None:
        _current[0] = Tracing(ratio=ratio)
        return _current[0]
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    from opentelemetry.sdk.trace.sampling import (
        Decision,
        ParentBased,
        Sampler,
        SamplingResult,
        TraceIdRatioBased,
    )

    class DecidedOrRatio(Sampler):
        """Samples the roots that `start_server_span` has chosen; decides about other roots by trace id."""

        _by_ratio = TraceIdRatioBased(ratio)

        def should_sample(
            self, parent_context: Any, trace_id: int, name: str, *args: Any, **kwargs: Any
        ) -> SamplingResult:
            if otel_context.get_value(_FORCE, parent_context):
                return SamplingResult(Decision.RECORD_AND_SAMPLE)
            return self._by_ratio.should_sample(parent_context, trace_id, name, *args, **kwargs)

        def get_description(self) -> str:
            return f"DecidedOrRatio({ratio})"

    provider = TracerProvider(
        resource=Resource.create({"service.name": service}),
        sampler=ParentBased(DecidedOrRatio()),
        shutdown_on_exit=False,
    )
    if exporter is not None:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    else:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(endpoint=otlp_endpoint, insecure=not otlp_endpoint.startswith("https"))
            )
        )
    _current[0] = Tracing(provider.get_tracer("flywheel"), ratio, provider)
    return _current[0]


def parse_traceparent(text: str) -> SpanContext | None:
    """Parses a W3C traceparent, version 00; None when malformed."""
    parts = text.split("-")
    if len(parts) < 4 or len(parts[1]) != 32 or len(parts[2]) != 16 or len(parts[3]) != 2:
        return None
    try:
        context = SpanContext(
            int(parts[1], 16), int(parts[2], 16), is_remote=True, trace_flags=TraceFlags(int(parts[3], 16))
        )
    except ValueError:
        return None
    return context if context.is_valid else None


def format_traceparent(context: SpanContext) -> str:
    """Formats a span context as a W3C traceparent."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 1:02x}"
