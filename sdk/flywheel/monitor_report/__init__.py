"""One self-contained HTML page about what the monitor has seen of a model version."""

from flywheel.monitor_report.content import ReportContent, read_report
from flywheel.monitor_report.page import report_page

__all__ = ["ReportContent", "read_report", "report_page"]
