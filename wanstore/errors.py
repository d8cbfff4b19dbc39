"""What can go wrong, as one base class and a few meanings.

Every error says what happened and, as `next_step`, what to do about it. The command line prints both on one line and
exits with status 1. An error whose `resumable` is true leaves finished work behind: running the same command again
resumes it.

Most errors are also the built-in that fits, so that code that knows nothing of wanstore can catch them.
"""

from __future__ import annotations

import re
from typing import Any

_SECRET = re.compile(r"(?<=://)[^/\s]*(?=@)|\bhf_[A-Za-z0-9]{20,}")
"""No message repeats these, wherever they were typed."""


def without_secrets(text: str) -> str:
    """`text` with every user and password of a URL, and every token of the Hub, as `***`."""
    return _SECRET.sub("***", text)


class WanstoreError(Exception):
    """Base of every error that wanstore raises on purpose.

    Attributes:
        what: one sentence that says what happened, and where.
        next_step: one sentence that says what to do about it; may be empty.
        resumable: whether running the same command again resumes finished work.
    """

    resumable = False

    def __init__(self, what: str, next_step: str = "") -> None:
        what, next_step = without_secrets(what), without_secrets(next_step)
        super().__init__(f"{what}. {next_step}." if next_step else f"{what}.")
        self.what = what
        self.next_step = next_step

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as it was raised: by what happened and the next step, not by the message made of them."""
        return type(self), (self.what, self.next_step)


class NotFoundError(WanstoreError, FileNotFoundError):
    """There is no such pipeline, folder, repo, revision or preset."""


class AlreadyExistsError(WanstoreError, FileExistsError):
    """The store already holds a pipeline of that name, or a file is in the way."""


class BusyError(WanstoreError):
    """Another running process is writing the same pipeline."""


class InvalidNameError(WanstoreError, ValueError):
    """The name or address cannot be used: it could leave the store, or hide in it."""


class DamagedError(WanstoreError):
    """Stored or fetched bytes are not what the manifest, or the Hub, says they are."""


class SourceError(WanstoreError):
    """The source cannot be converted as it is: a file is missing, malformed, or of the wrong kind."""


class ConversionRefusedError(SourceError):
    """Values would not survive float16: overflows beyond 65504, NaN or Inf."""


class AccessError(WanstoreError, PermissionError):
    """Access was refused: a gated repo, a wrong token, a missing permission."""


class UnreachableError(WanstoreError, ConnectionError):
    """The other side did not answer, or not in time, after every retry."""

    resumable = True


class DiskFullError(WanstoreError, OSError):
    """The disk is full; nothing half-written was published."""

    resumable = True


class InvalidSettingError(WanstoreError, ValueError):
    """A file of presets or prices, or an environment variable, holds what cannot be used; `what` names it."""


class NotSupportedError(WanstoreError, ValueError):
    """This build, file system or installation cannot do that, or an argument asks for what there is not."""


class NotActivatedError(WanstoreError):
    """The pipeline was loaded with deferred weights, and `wanstore.activate` was not called yet."""


class ChangedError(WanstoreError):
    """The store no longer holds what the pipeline was prepared from, or it was replaced during the load."""


class DeviceError(WanstoreError):
    """The device has too little memory, failed, or is gone."""


class DeviceMemoryError(DeviceError, MemoryError):
    """The device has too little memory."""
