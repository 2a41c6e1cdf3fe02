"""Airflow operators that start pipelines and jobs of Flywheel and wait for them."""

from flywheel_airflow.hook import FlywheelHook
from flywheel_airflow.operators import FlywheelJobOperator, FlywheelPipelineOperator
from flywheel_airflow.triggers import FlywheelTrigger

__all__ = ["FlywheelHook", "FlywheelJobOperator", "FlywheelPipelineOperator", "FlywheelTrigger"]
