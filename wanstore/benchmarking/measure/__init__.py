"""One preset, measured in this process: seconds by phase, memory, energy, quality; and the machine's own limits."""

from wanstore.benchmarking.measure._pipeline_benchmarker import PipelineBenchmarker

__all__ = ["PipelineBenchmarker"]
