"""A bucket of the test's own: the real client, and an S3 service on 127.0.0.1 that wanstore's authors did not write."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3]))  # tests/ is no package that could be installed

from tests.stores.object.s3 import S3


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A running service; the environment points clients, also a subprocess's, at it."""
    with S3() as service:
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WANSTORE_CACHE", str(tmp_path / "cache"))
        yield service
