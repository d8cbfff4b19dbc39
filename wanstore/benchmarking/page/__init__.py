"""A report as people read it: a page of the site with charts, a short summary, a table for the terminal."""

from wanstore.benchmarking._outputs import check_page
from wanstore.benchmarking.page._page import summary, table_of, write

__all__ = ["check_page", "summary", "table_of", "write"]
