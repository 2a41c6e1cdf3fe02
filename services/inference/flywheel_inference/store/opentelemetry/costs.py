"""What predictions cost, as OpenTelemetry counters by model."""

from __future__ import annotations

from opentelemetry.metrics import Meter


class CostCounters:
    """`prediction_log.Costs`. The cost per prediction of a model is `flywheel.inference.cost` divided by
    `flywheel.inference.priced_predictions`; copies for a shadow count as predictions of its model."""

    def __init__(self, meter: Meter) -> None:
        self._cost = meter.create_counter(
            "flywheel.inference.cost", description="Cost of predictions, in the unit of their releases"
        )
        self._count = meter.create_counter(
            "flywheel.inference.priced_predictions", "{prediction}", "Predictions of releases with prices"
        )

    def add(self, model: str, total: float, predictions: int) -> None:
        attributes = {"flywheel.model": model}
        self._cost.add(total, attributes)
        self._count.add(predictions, attributes)
