"""A control plane on 127.0.0.1 that the unmodified `modal` client and command line talk to.

    with ControlPlane(tmp_path) as control:
        ...  # point the client at control.url; its Volumes' files lie under control.volumes.folder(NAME)

Volumes v1 and v2 and Dicts have real contents in a folder. `modal run` and `modal deploy` work: the functions' bodies
run in containers, each a process of the wheel's own container entrypoint with the code that the client uploaded, a
view of its own of each Volume (see `views`) mounted where the app wants it (see `roots`), the variables that secrets
and the image's ENV set, the function's timeout, and retries when it fails or dies. A class of a deployed app with
`enable_memory_snapshot` goes through enter(snap=True), the checkpoint, and enter(snap=False). Web functions answer
HTTP at their `get_web_url()`. All of it can be made to fail: see `Faults`, `Container.kill`, and
`ControlPlane.lose_clients`.

What it does not emulate:

- Images: nothing is built; containers run in the test's own Python environment, with its packages. Only files
  that an image adds below /root are there.
- Snapshots: nothing is written or restored. At the checkpoint the client hangs up, and the same process goes on
  as if restored, with a new task id. So memory, random seeds and CUDA are what they were, and a second container
  starts from the beginning. The files on Volumes that were in use are noted. There is no GPU, hence no GPU snapshot.
- The runtime, gVisor: its file system, limits and host names; CPU, memory and GPU requests, start-up timeouts and
  regions are taken note of by nobody.
- Scaling: a container for each waiting input up to a small limit, no idle time-out, at most `containers.most` at
  once; containers of an older deployment go on. A retry's delay is cut to a tenth of a second.
- Rates: transfers to and from outside, and commits, take the time that `volumes.link` gives them. Reads and writes on a
  mount are as fast as the disk.
- Commits: whether Modal shows one in one step is not documented; here it does. Background commits come each half
  second, Modal's each few seconds.
- Web endpoints: those of functions are served, each at a port of its own; any two strings are a proxy token, and a
  request is read whole before the function sees it. WebSockets, web endpoints of a class's methods, pieces of an
  answer beyond 40 MiB, schedules, queues, sandboxes, generators, classes with parameters and batching: not at all.
- Accounts, permissions (any token will do) and environments (all are one); uploads in several parts (the client
  asks for them beyond 1 GiB only when told to); signatures; quotas.
"""

from __future__ import annotations

from tests.modal_loopback.faults import Faults
from tests.modal_loopback.server import ControlPlane

__all__ = ["ControlPlane", "Faults"]
