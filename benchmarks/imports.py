"""What a load's imports cost: done plainly, and by `import_lean`. Fresh processes, taking turns.

python3 benchmarks/imports.py [ROUNDS]

Nothing but the libraries is needed. The first round, which writes byte code and fills the page cache, is not
counted. "CPU" is the process's own time, which a busy machine distorts less.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
REPORT = """
import json, sys, time
print(json.dumps([time.perf_counter() - began, time.process_time(), len(sys.modules)]))
"""
LIBRARIES = """
import diffusers, torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.models.modeling_utils import no_init_weights
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel
"""
OURS = """
from wanstore.lean_imports import import_lean
from wanstore.loading._load import LIBRARIES
import_lean(LIBRARIES)
"""
PROGRAMS = {"import torch": "import torch", "plain imports": LIBRARIES, "import_lean": OURS + LIBRARIES}


def measure(program: str) -> list[float]:
    """Seconds, CPU seconds and modules of one fresh process."""
    command = [sys.executable, "-c", f"import time\nbegan = time.perf_counter()\n{program}\n{REPORT}"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, cwd="/"
    )
    figures: list[float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    runs: dict[str, list[list[float]]] = {name: [] for name in PROGRAMS}
    for turn in range(rounds + 1):
        for name, program in PROGRAMS.items():
            figures = measure(program)
            if turn:
                runs[name].append(figures)
    rows = {name: [median(column) for column in zip(*figures, strict=True)] for name, figures in runs.items()}
    seconds, processor, modules = rows["plain imports"]
    print(f"Python {sys.version.split()[0]}, medians of {rounds}\n")
    print("| | s | of plain | CPU s | of plain | modules | of plain |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, (own_seconds, own_processor, own_modules) in rows.items():
        print(
            f"| {name} | {own_seconds:.2f} | {own_seconds / seconds:.0%} | {own_processor:.2f} "
            f"| {own_processor / processor:.0%} | {own_modules:.0f} | {own_modules / modules:.0%} |"
        )


if __name__ == "__main__":
    main()
