"""The demo is run by `make demo`; here is what it must never do."""

from __future__ import annotations

from pathlib import Path

import pytest

from wanstore.cli import _demo as demo
from wanstore.errors import AlreadyExistsError
from wanstore.stores.local import LocalStore
from wanstore.testing.stores import put


def test_a_demo_touches_nothing_that_no_demo_made(tmp_path: Path) -> None:
    """Its folder may be one that holds somebody's store."""
    store = LocalStore(tmp_path / "store")
    put(store, "other")
    put(store, demo.NAME)
    with pytest.raises(AlreadyExistsError, match="which was not made by a demo"):
        demo.run_demo(tmp_path, print)
    assert [manifest.name for manifest in store.list().pipelines] == ["other", demo.NAME]


def test_a_demo_replaces_an_earlier_ones_pipeline_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins anew, so that there is something to see."""
    store = LocalStore(tmp_path / "store")
    put(store, "other")
    monkeypatch.setattr(demo, "REPO", put(store, demo.NAME).source.location)
    monkeypatch.setattr(demo, "LoopbackHub", None)  # it gets no further than that
    with pytest.raises(TypeError):
        demo.run_demo(tmp_path, print)
    assert [manifest.name for manifest in store.list().pipelines] == ["other"]
