"""What Airflow reads about this distribution: its type of connections."""

from __future__ import annotations

from typing import Any


def provider_info() -> dict[str, Any]:
    """The description of the provider, in Airflow's format."""
    return {
        "package-name": "flywheel-airflow",
        "name": "Flywheel",
        "description": "Pipelines and jobs of the Flywheel ML platform.",
        "connection-types": [
            {"connection-type": "flywheel", "hook-class-name": "flywheel_airflow.hook.FlywheelHook"}
        ],
    }
