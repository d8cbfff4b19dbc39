"""A whole benchmark: each preset in a fresh process, rows saved as they come, a stopped run resumed."""

from wanstore.benchmarking.run._process_benchmarker import ProcessBenchmarker

__all__ = ["ProcessBenchmarker"]
