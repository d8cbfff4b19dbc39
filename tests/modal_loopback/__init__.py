"""A control plane on 127.0.0.1 that the unmodified `modal` client talks to: Volumes v1 and v2, and Dicts.

    with ControlPlane(tmp_path) as control:
        ...  # point the client at control.url; its Volumes' files lie under control.volumes.folder(NAME)

It answers the calls behind `modal.Volume` and `modal.Dict` with real contents in a folder, and can be made to
fail: see `Faults`. It does not emulate: apps, functions, images and containers; accounts and permissions (any
token will do) and environments (all are one); uploads in several parts (the client asks for them beyond
1 GiB only when told to); the signature of an uploaded block; reads that outlive a change of their file; what
`commit` and `reload` do to a mount, since nothing is mounted here; speed, quotas and limits of the real thing.
"""

from __future__ import annotations

from tests.modal_loopback.faults import Faults
from tests.modal_loopback.server import ControlPlane

__all__ = ["ControlPlane", "Faults"]
