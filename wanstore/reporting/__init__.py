"""A page about a stored pipeline: one HTML file that fetches nothing and runs nothing."""

from wanstore.reporting._page import write_report

__all__ = ["write_report"]
