"""A container's root: this machine's own, with Volumes bind-mounted where the app wants them.

Seen by one process tree only, so that several containers may each have their own `/models`. It takes Linux's
mount namespaces, as root or by a user namespace. Where these are not allowed nothing is mounted: the container
finds its Volumes by WANSTORE_MODAL_MOUNTS, and a read-only Volume can be written to.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import attrs

_NEW_ROOT = "/mnt"  # any folder that every Linux has, and that no test lies in
_SCRIPT = f"""
set -e
mount -t tmpfs tmpfs {_NEW_ROOT}
for entry in /*; do
    if [ "$entry" = {_NEW_ROOT} ]; then continue
    elif [ -L "$entry" ]; then cp -P "$entry" "{_NEW_ROOT}$entry"
    elif [ -d "$entry" ]; then mkdir "{_NEW_ROOT}$entry"; mount --rbind "$entry" "{_NEW_ROOT}$entry"
    fi
done
while [ "$1" != -- ]; do
    mkdir -p "{_NEW_ROOT}$2"
    mount --bind "$1" "{_NEW_ROOT}$2"
    if [ "$3" = ro ]; then mount -o remount,bind,ro "{_NEW_ROOT}$2"; fi
    shift 3
done
shift
exec chroot {_NEW_ROOT} env --chdir="$PWD" "$@"
"""


@attrs.frozen
class BindMount:
    """`folder` of this machine appears as `place` in the container."""

    folder: Path
    place: str
    read_only: bool = False


def in_own_root(command: Sequence[str], mounts: Sequence[BindMount]) -> list[str]:
    """The command line that runs `command` with `mounts` in place. Needs `can_mount()`."""
    triples = [word for m in mounts for word in (str(m.folder), m.place, "ro" if m.read_only else "rw")]
    namespaces = ["--mount"] if os.geteuid() == 0 else ["--map-root-user", "--mount"]
    return ["unshare", *namespaces, "sh", "-c", _SCRIPT, "sh", *triples, "--", *command]


@cache
def can_mount() -> bool:
    """Whether this system lets us mount in a namespace of our own."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(in_own_root(["true"], []), check=False, capture_output=True).returncode == 0
