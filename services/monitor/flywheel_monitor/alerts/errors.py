"""Errors about alerts."""

from __future__ import annotations

from flywheel_common.errors import FailedPrecondition, InvalidArgument, NotFound
from flywheel_common.webhooks.errors import UnknownWebhook
from flywheel_monitor.models.names import AlertName


class UnknownAlert(NotFound):
    """The alert does not exist in this project."""

    reason = "UNKNOWN_ALERT"
    remedy = "Look its name up with ListAlerts."


class AlertResolved(FailedPrecondition):
    """The alert is resolved and cannot be acknowledged."""

    reason = "ALERT_RESOLVED"
    remedy = "Nothing to do: a new alert opens if the drift returns."


class InvalidFilter(InvalidArgument):
    """The filter of ListAlerts has an unknown field or value."""

    reason = "INVALID_FILTER"
    remedy = "Join `model=…`, `state=OPEN|ACKNOWLEDGED|RESOLVED` and `kind=…` by AND."


class ReasonRequired(InvalidArgument):
    """An alert is resolved, or alerts are silenced, without a reason."""

    reason = "REASON_REQUIRED"
    remedy = "Set the field `reason`."


class InvalidSilence(InvalidArgument):
    """A silence has an unknown kind of alert, or a duration outside its limits."""

    reason = "INVALID_SILENCE"
    remedy = "Give a kind of alert or none, and a duration of at most 366 days."


def unknown_alert(name: AlertName) -> UnknownAlert:
    return UnknownAlert(f"Alert {name} does not exist: list the alerts with ListAlerts.", alert=name)


def already_resolved(name: AlertName) -> AlertResolved:
    return AlertResolved(f"Alert {name} is already resolved and cannot be acknowledged.")


def unknown_sink(project: str, sink: str) -> UnknownWebhook:
    return UnknownWebhook(f"Project {project} has no alert sink {sink}: list them with ListAlertSinks.")
