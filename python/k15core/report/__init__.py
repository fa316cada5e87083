"""Metrics, the live display, the summary, and the pages made of them."""

from k15core.report.compare import write_comparison
from k15core.report.html import write_report
from k15core.report.live import LiveDisplay
from k15core.report.metrics import Metrics, MetricsWriter, read_metrics
from k15core.report.picture import write_picture
from k15core.report.summary import before_after_table, summarize, write_summary

__all__ = [
    "LiveDisplay",
    "Metrics",
    "MetricsWriter",
    "before_after_table",
    "read_metrics",
    "summarize",
    "write_comparison",
    "write_picture",
    "write_report",
    "write_summary",
]
