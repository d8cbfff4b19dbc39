"""How long it takes until wanstore is there: fresh processes, beside an empty one and `import torch`.

python -m pytest benchmarks/test_startup.py -m ""
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import wanstore": ["-c", "import wanstore"],
    "from wanstore import load": ["-c", "from wanstore import load"],
    "wanstore --help": ["-m", "wanstore", "--help"],
    "wanstore list": ["-m", "wanstore", "list", "--store", "no-such-folder"],
    "import torch": ["-c", "import torch"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_startup(benchmark: Any, name: str, tmp_path: Path) -> None:
    command = [sys.executable, *COMMANDS[name]]
    benchmark.pedantic(
        lambda: subprocess.run(command, check=True, capture_output=True, cwd=tmp_path), rounds=10, warmup_rounds=1
    )
