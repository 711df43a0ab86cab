"""Pages, tables and figures made from the summary of a study."""

from plait.report.page import write_report
from plait.report.svg import metric_svg, write_metric_svg
from plait.report.tables import csv_text

__all__ = ["csv_text", "metric_svg", "write_metric_svg", "write_report"]
