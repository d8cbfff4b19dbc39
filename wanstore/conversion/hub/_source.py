"""A source on the Hugging Face Hub, at one commit, fetched so that a bad network costs time and nothing else.

The Hub's client checks sizes only, gives up on a reset, forgets everything when its process is killed, and waits
for ever on an API call that stays silent. So its session, addresses, token and errors are used here, and what
it lacks is added: every byte is hashed against the Hub's own record, every wait has an end, every failure that
may pass is retried, and what arrived before a crash is not fetched again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from wanstore._error_translation import plain_os_errors
from wanstore.conversion.hub._download import Download, TreeFile
from wanstore.conversion.hub._http import Http, Limits
from wanstore.errors import InvalidNameError, SourceError
from wanstore.interfaces import Progress, Quiet, Source
from wanstore.manifest import SourceRecord

_MAX_PAGES, _MAX_ENTRIES, _MAX_PATH = 1000, 100_000, 1024
"""More than any repo of weights has."""


class HubSource(Source):
    """A model repo on the Hub, at the commit that `revision` (or `main`) had when this was made.

    The token is the client's own (`HF_TOKEN` or `hf auth login`): never stored, printed or put in an error.
    With `keep`, downloads go to that folder and stay there; otherwise `release` deletes them. `progress` receives
    retries outside of `fetch`.
    Raises `NotFoundError`, `AccessError`, `UnreachableError`.
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
        self._endpoint = constants.ENDPOINT
        self._running: set[Download] = set()
        self._progress = progress or Quiet()
        self._http = Http(repo, revision, self._endpoint, self._limits, self._progress)
        api = f"{self._endpoint}/api/models/{repo}"
        info, _ = self._http.json(f"{api}/revision/{quote(revision, safe='')}" if revision else api)
        self.record = SourceRecord("hub", repo, _commit(info, repo), revision)
        self._tree = {file.path: file for file in self._list(f"{api}/tree/{self.record.commit}?recursive=true")}
        self.files = {path: file.size for path, file in self._tree.items()}

    def head(self, path: str, size: int) -> bytes:
        file = self._file(path)
        stop = min(size, file.size)
        return self._http.retrying(path, self._progress, lambda: self._http.range(self._url(path), 0, stop, file.size))

    def fetch(self, path: str, into: Path, progress: Progress) -> Path:
        file, target = self._file(path), (self.keep or into) / path
        with plain_os_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            progress.start(path, file.size)
            download = Download(file, self._url(path), target, self._http, self._limits, progress)
            self._running.add(download)
            try:
                if not download.already_there():
                    download.run()
            finally:
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
        left = _MAX_ENTRIES
        while page:
            pages.add(page)
            entries, page = self._http.json(page)
            if page in pages or len(pages) > _MAX_PAGES:
                raise SourceError("The Hub's list of files has no end", "Check HF_ENDPOINT")
            if not isinstance(entries, list) or (left := left - len(entries)) < 0:
                raise SourceError("The Hub's list of files is no list, or too long", "Check HF_ENDPOINT")
            yield from (_tree_file(entry) for entry in entries if not _is_folder(entry))


def _is_folder(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("type") != "file"


def _tree_file(entry: Any) -> TreeFile:
    """A file as the Hub lists it; raises `SourceError` unless every part is what it should be."""
    try:
        path, size, oid, lfs = entry["path"], entry["size"], entry["oid"], entry.get("lfs")
        sha256 = lfs["oid"] if lfs else None
        whole = isinstance(path, str) and type(size) is int and size >= 0 and _is_hash(oid, 40)
    except (KeyError, TypeError) as error:
        raise SourceError(f"The Hub's list of files is malformed ({error!r})", "Check HF_ENDPOINT") from error
    if not whole or not (sha256 is None or _is_hash(sha256, 64)):
        raise SourceError(f"The Hub's list of files is malformed ({str(entry)[:200]})", "Check HF_ENDPOINT")
    return TreeFile(_inside(path), size, oid, sha256)


def _is_hash(text: Any, digits: int) -> bool:
    return isinstance(text, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", text) is not None


def _commit(info: Any, repo: str) -> str:
    """The commit that the Hub resolved a revision to; everything after this asks for it, and not for a branch."""
    commit = info.get("sha") if isinstance(info, dict) else None
    if not _is_hash(commit, 40):
        raise SourceError(f"The Hub gave no commit for {repo}", "Check HF_ENDPOINT")
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


def _inside(path: str) -> str:
    """The path itself, unless it would leave the folder that it is fetched into."""
    place = PurePosixPath(path)
    odd = str(place) != path or not path.isprintable() or len(path) > _MAX_PATH
    if odd or not place.parts or place.is_absolute() or ".." in place.parts or "\\" in path:
        raise SourceError(
            f"The repo names a file {path[:200]!r}, which would be outside its folder, or hide in it",
            "Do not use this repo",
        )
    return path
