"""Compiled blocks for a stored pipeline, made once and tried out, to be kept in its store."""

from wanstore.compiling._make import make_functions
from wanstore.compiling._report import CompiledPreset, CompileReport

__all__ = ["CompileReport", "CompiledPreset", "make_functions"]
