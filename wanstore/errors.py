"""What can go wrong, as one base class and a few meanings.

Every error says what happened and, as `next_step`, what to do about it; the command line prints both on
one line and exits with status 1. Errors whose `resumable` is true leave finished work behind: running the
same command again goes on from there.
"""

from __future__ import annotations


class WanstoreError(Exception):
    """Base of every error that wanstore raises on purpose.

    `what` is one sentence on what happened; `next_step` one on what to do about it.
    """

    resumable = False

    def __init__(self, what: str, next_step: str = "") -> None:
        super().__init__(f"{what}. {next_step}." if next_step else f"{what}.")
        self.what = what
        self.next_step = next_step


class NotFoundError(WanstoreError):
    """There is no such pipeline, folder, repo, revision or preset."""


class AlreadyExistsError(WanstoreError):
    """The store already holds a pipeline of that name."""


class BusyError(WanstoreError):
    """Another live run is writing the same pipeline."""


class InvalidNameError(WanstoreError):
    """The name or address cannot be used: it could leave the store, or hide in it."""


class DamagedError(WanstoreError):
    """Stored or fetched bytes are not what the manifest, or the Hub, says they are."""


class SourceError(WanstoreError):
    """The source cannot be converted as it stands: a file is missing, malformed, or of the wrong kind."""


class ConversionRefusedError(SourceError):
    """Values would not survive float16: overflows beyond 65504, NaN or Inf."""


class AccessError(WanstoreError):
    """The other side refused us: gated repo, wrong token, missing permission."""


class UnreachableError(WanstoreError):
    """The other side did not answer, or not in time, after every retry."""

    resumable = True


class DiskFullError(WanstoreError):
    """There is no room to write; nothing half-written was published."""

    resumable = True


class InvalidSettingError(WanstoreError):
    """A file of presets or prices holds a key, type or value that cannot be used; `what` names all three."""


class NotSupportedError(WanstoreError):
    """This build, file system or installation cannot do that: an extra or a newer version may."""


class NotActivatedError(WanstoreError):
    """The pipeline was loaded with deferred weights, and `activate` was not called yet."""


class ChangedError(WanstoreError):
    """The store no longer holds what the pipeline was prepared from, or it was replaced in mid-load."""


class DeviceError(WanstoreError):
    """The device has too little memory, failed, or is gone."""


class DeviceMemoryError(DeviceError):
    """The device has too little memory."""
