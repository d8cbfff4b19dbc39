"""One Modal Volume through the `modal` client: list, read, write, remove, each tried again when it may help."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wanstore._error_translation import in_one_line
from wanstore.errors import AccessError, NotFoundError, NotSupportedError, UnreachableError, WanstoreError
from wanstore.stores import _transfers
from wanstore.stores._transfers import Advance, Blocks, counted

if TYPE_CHECKING:
    import modal

T = TypeVar("T")

_FILE, _DIRECTORY = 1, 2  # of modal.types.FileEntryType, which may not be there to import


def import_modal() -> Any:
    """The `modal` package; raises `NotSupportedError` when it is not installed."""
    try:
        import modal
    except ImportError as error:
        raise NotSupportedError(
            "modal:// needs the modal package, which is not installed", "Install it: pip install 'wanstore[modal]'"
        ) from error
    return modal


@contextmanager
def plain_modal_errors() -> Iterator[None]:
    """Turn the client's errors into ours; what is missing becomes `FileNotFoundError`."""
    import_modal()
    import aiohttp
    from grpclib.exceptions import StreamTerminatedError
    from modal import exception as modals

    try:
        yield
    except WanstoreError:
        raise
    except modals.NotFoundError as error:
        raise FileNotFoundError(str(error)) from error
    except (modals.AuthError, modals.PermissionDeniedError) as error:
        raise AccessError(
            f"Modal refused access ({in_one_line(error)})",
            "Log in with: modal setup, or set MODAL_TOKEN_ID and _SECRET",
        ) from error
    except (
        modals.ServiceError,
        modals.ConnectionError,
        modals.TimeoutError,
        modals.InternalError,
        modals.ResourceExhaustedError,
        modals.ExecutionError,  # a block that the other side would not take or give
        aiohttp.ClientError,
        StreamTerminatedError,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise UnreachableError(
            f"Modal did not respond correctly ({in_one_line(error)})", "Run the same command again: it resumes"
        ) from error
    except modals.Error as error:
        raise WanstoreError(f"Modal could not do that ({in_one_line(error)})") from error


def retrying(operation: Callable[[], T]) -> T:
    """What `operation` returns, tried again with growing pauses while Modal cannot be reached."""
    return _transfers.retrying(operation, plain_modal_errors)


class RemoteVolume:
    """The Volume `name`. Paths are relative to its root; a missing one raises `FileNotFoundError`.

    Raises `NotFoundError` while the Volume does not exist: only `create` makes it.
    """

    def __init__(self, name: str, client: modal.Client | None = None) -> None:
        self.name = name
        self.client = client
        self._found: modal.Volume | None = None

    def create(self) -> None:
        """Make the Volume unless it is there."""
        self._found = retrying(lambda: self._look_up(create=True))

    def _volume(self) -> modal.Volume:
        if self._found is None:
            try:
                self._found = retrying(lambda: self._look_up(create=False))
            except FileNotFoundError:
                raise NotFoundError(
                    f"There is no Modal Volume {self.name!r}", "Create it with: wanstore setup"
                ) from None
        return self._found

    def _look_up(self, create: bool) -> modal.Volume:
        volume: modal.Volume = import_modal().Volume.from_name(self.name, create_if_missing=create, client=self.client)
        return volume.hydrate()

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in `folder`."""
        return sorted(
            entry.path.rpartition("/")[2] for entry in _entries(self._volume(), folder) if entry.type == _DIRECTORY
        )

    def sizes(self, folder: str) -> dict[str, int]:
        """Every file below `folder`, by its path relative to it; empty when there is none. A link counts as -1."""
        volume = self._volume()
        try:
            entries = _entries(volume, folder, recursive=True)
        except FileNotFoundError:
            return {}
        start = len(folder.strip("/")) + 1 if folder.strip("/") else 0
        return {
            entry.path.lstrip("/")[start:]: entry.size if entry.type == _FILE else -1
            for entry in entries
            if entry.type != _DIRECTORY
        }

    def exists(self, path: str) -> bool:
        """Whether there is a file or a folder at `path`."""
        volume = self._volume()
        try:
            _entries(volume, path)
        except FileNotFoundError:
            return False
        return True

    def read(self, path: str, max_bytes: int) -> bytes:
        """A small file's bytes. Raises `ValueError` when it has more than `max_bytes`."""
        volume = self._volume()

        def attempt() -> bytes:
            data = b""
            for block in volume.read_file(path):
                data += block
                if len(data) > max_bytes:
                    raise ValueError(f"it is larger than {max_bytes} bytes")
            return data

        return retrying(attempt)

    def blocks(self, path: str) -> Blocks:
        """What the file at `path` holds, in order. When reading breaks off, it begins anew and skips what came."""
        volume, came = self._volume(), 0
        for delay in (*_transfers.RETRY_DELAYS_SECONDS, None):
            try:
                with plain_modal_errors():
                    position = 0
                    for block in volume.read_file(path):
                        position += len(block)
                        if position > came:
                            new, came = block[came - position :], position
                            yield new
                    return
            except UnreachableError:
                if delay is None:
                    raise
                time.sleep(delay)

    def sha256(self, path: str, advance: Advance) -> str | None:
        """SHA-256 of the file at `path`, which passes through memory block by block; `advance` hears of each.

        None when the file is missing.
        """
        digest = hashlib.sha256()
        try:
            for block in counted(self.blocks(path), advance):
                digest.update(block)
        except FileNotFoundError:
            return None
        return digest.hexdigest()

    def put(self, files: Mapping[str, Path | bytes]) -> None:
        """Write files, each from a local path or from bytes, over what is there. They appear together, at the end."""
        volume = self._volume()

        def attempt() -> None:
            with volume.batch_upload(force=True) as batch:
                for path, source in files.items():
                    batch.put_file(io.BytesIO(source) if isinstance(source, bytes) else source, "/" + path)

        retrying(attempt)

    def remove(self, path: str) -> None:
        """Remove a file or a whole folder, if it is there."""
        volume = self._volume()
        try:
            retrying(lambda: volume.remove_file(path, recursive=True))
        except FileNotFoundError:
            return


def _entries(volume: modal.Volume, path: str, *, recursive: bool = False) -> list[Any]:
    return retrying(lambda: volume.listdir(path or "/", recursive=recursive))
