"""A source on the Hugging Face Hub, at one commit, fetched so that a bad network costs time and nothing else.

The Hub's client checks sizes only, gives up on a reset, forgets everything when its process is killed, and waits
for ever on an API call that stays silent. So its session, addresses, token and errors are used here, and what
it lacks is added: every byte is hashed against the Hub's own record, every wait has an end, every failure that
may pass is retried, and what arrived before a crash is not fetched again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from wanstore._error_translation import plain_os_errors
from wanstore.conversion.hub._download import Download
from wanstore.conversion.hub._http import Http, Limits
from wanstore.conversion.hub._leftovers import make_folder_for
from wanstore.conversion.hub._part import TreeFile
from wanstore.conversion.hub._ways import Ways
from wanstore.conversion.hub._xet import Xet, xet_available
from wanstore.errors import InvalidNameError, SourceError
from wanstore.interfaces import Progress, Quiet, Source
from wanstore.manifest import SourceRecord

_CHECK = "Check HF_ENDPOINT and your proxy"
_OTHER_REPO = "Do not use this repo"
_MAX_PAGES = 1000
_MAX_ENTRIES = 100_000
_MAX_NAME_BYTES = 255 - len(".pieces")
"""Of one part of a path: what Linux file systems hold, with what is added while a file arrives."""


class HubSource(Source):
    """A model repo on the Hub, at the commit that `revision` (or `main`) had when this was made.

    The token is the client's own (`HF_TOKEN` or `hf auth login`): never stored, printed or put in an error.
    With `keep`, downloads go to that folder and stay there; otherwise `release` deletes them. `progress` receives
    retries outside of `fetch`. A leftover of an earlier run that cannot be used is deleted, with a warning in the log.
    Raises `NotFoundError`, `AccessError`, `UnreachableError`, and `SourceError` when the Hub's answers are no good.
    """

    def __init__(
        self,
        repo: str,
        revision: str | None = None,
        *,
        keep: Path | None = None,
        limits: Limits | None = None,
        progress: Progress | None = None,
    ) -> None:
        from huggingface_hub import constants

        _check_repo(repo)
        self.keep = keep
        self._limits = limits or Limits()
        self._running: set[Download] = set()
        self._progress = progress or Quiet()
        self._http = Http(repo, revision, constants.ENDPOINT, self._limits, self._progress)
        self._endpoint = self._http.endpoint
        api = f"{self._endpoint}/api/models/{repo}"
        info, _ = self._http.json(f"{api}/revision/{quote(revision, safe='')}" if revision else api)
        self.record = SourceRecord("hub", repo, _commit(info, repo), revision)
        self._tree = {file.path: file for file in self._list(f"{api}/tree/{self.record.commit}?recursive=true")}
        self.files = {path: file.size for path, file in self._tree.items()}
        on_xet = any(file.xet for file in self._tree.values()) and xet_available()
        token_url = f"{api}/xet-read-token/{self.record.commit}"
        xet = Xet(token_url, self._http, self._limits) if on_xet else None
        self._ways = Ways(self._http, self._limits, xet)

    def head(self, path: str, size: int) -> bytes:
        return self._read(path, 0, min(size, self._file(path).size))

    def tail(self, path: str, size: int) -> bytes:
        end = self._file(path).size
        return self._read(path, max(0, end - size), end)

    def _read(self, path: str, start: int, stop: int) -> bytes:
        url, size = self._url(path), self._file(path).size
        return self._http.retrying(path, self._progress, lambda: self._http.range(url, start, stop, size))

    def fetch(self, path: str, into: Path, progress: Progress) -> Path:
        file, target = self._file(path), (self.keep or into) / path
        with plain_os_errors(target):
            make_folder_for(self.keep or into, path)
            progress.start(path, file.size)
            download = Download(file, self._url(path), target, self._ways, self._http, self._limits, progress)
            self._running.add(download)
            try:
                if not download.already_there():
                    download.run()
            finally:
                download.leave_line()
                self._running.discard(download)
            progress.finish(path)
        return target

    def release(self, path: str, fetched: Path) -> None:
        if self.keep is None:
            fetched.unlink(missing_ok=True)

    def stop(self) -> None:
        for download in tuple(self._running):
            download.stop()

    def _file(self, path: str) -> TreeFile:
        if path not in self._tree:
            raise SourceError(
                f"{self.record.location} has no file {path} at commit {self.record.commit[:12]}",
                "Check that this is a Wan 2.1 repo, or name another revision",
            )
        return self._tree[path]

    def _url(self, path: str) -> str:
        # `hf_hub_url` bakes in the endpoint that was set when the client was imported.
        return f"{self._endpoint}/{self.record.location}/resolve/{self.record.commit}/{quote(path)}"

    def _list(self, url: str) -> Iterator[TreeFile]:
        page: str | None = url
        pages: set[str] = set()
        count = 0
        while page:
            pages.add(page)
            entries, page = self._http.json(page)
            count += len(entries) if isinstance(entries, list) else 0
            if page in pages or len(pages) >= _MAX_PAGES or count > _MAX_ENTRIES:
                raise SourceError(f"The Hub's list of the files of {self.record.location} has no end", _CHECK)
            try:
                yield from (_tree_file(entry) for entry in entries if entry["type"] == "file")
            except (KeyError, TypeError, AttributeError):
                raise SourceError("The Hub's list of files is malformed", _CHECK) from None


def _tree_file(entry: Any) -> TreeFile:
    """One file of the list, every value of it checked."""
    path, size, oid = entry["path"], entry["size"], entry["oid"]
    sha256 = (entry.get("lfs") or {}).get("oid")
    _check_path(path)
    if type(size) is not int or not 0 <= size < 1 << 63:
        raise SourceError(f"The Hub's list of files gives {path} the size {str(size)[:40]!r}", _CHECK)
    if not _is_hex(oid, 40) or not (sha256 is None or _is_hex(sha256, 64)):
        raise SourceError(f"The Hub's list of files gives {path} a malformed hash", _CHECK)
    # It only finds chunks, and nothing is checked by it. Without a good one the file comes over HTTPS.
    xet = entry.get("xetHash")
    return TreeFile(path, size, oid, sha256, xet if sha256 and _is_hex(xet, 64) else None)


def _is_hex(text: Any, digits: int) -> bool:
    return isinstance(text, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", text) is not None


def _commit(info: Any, repo: str) -> str:
    """The commit that the Hub resolved a revision to; everything after this asks for it, and not for a branch."""
    commit = info.get("sha") if isinstance(info, dict) else None
    if not _is_hex(commit, 40):
        raise SourceError(f"The Hub gave no commit for {repo}", _CHECK)
    return str(commit)


def _check_repo(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise InvalidNameError(
            f"{repo!r} is not a valid name of a Hub repo", "Name one like Wan-AI/NAME, or a folder"
        ) from None


def _check_path(path: str) -> None:
    """Raise `SourceError` unless the path is a plain one below the folder that it is fetched into."""
    shown = repr(path[:80])
    parts = path.split("/")
    if path.startswith("/") or ".." in parts or "\\" in path:
        raise SourceError(f"The repo names a file {shown}, which would be outside its folder", _OTHER_REPO)
    if "" in parts or "." in parts or re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", path):
        raise SourceError(f"The repo names a file {shown}, which is not a plain path", _OTHER_REPO)
    if any(len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        raise SourceError(f"The repo names a file {shown}, which is too long", _OTHER_REPO)
