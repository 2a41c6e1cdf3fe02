"""OpenTelemetry adapters."""
