"""A file that is still arriving."""

from __future__ import annotations

import os
from pathlib import Path

from wanstore.conversion.hub._part import Part, TreeFile


def test_a_file_that_is_cut_while_it_is_hashed_is_wrong(tmp_path: Path) -> None:
    """And does not keep anybody waiting."""
    content = os.urandom(100)
    (tmp_path / "weights.part").write_bytes(content)
    (tmp_path / "weights.pieces").write_text("[0-100]")
    with Part(TreeFile("weights", 100, "0" * 40, "0" * 64), tmp_path / "weights") as part:
        assert part.have == [(0, 100)]
        os.truncate(part.path, 50)
        while not part.whole:
            part.hash_on(lambda buffer: None)
        assert not part.right
