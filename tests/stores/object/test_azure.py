"""A store in a container of Azure Blob Storage: in Azurite, the service's own emulator, where it is installed.

npm install azurite
PATH=node_modules/.bin:$PATH python -m pytest -m slow tests/stores/object/test_azure.py
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import shutil
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from obstore.store import AzureStore

from wanstore.interfaces import WeightStore
from wanstore.stores.object import ObjectStore
from wanstore.testing import WeightStoreTests

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("azurite-blob") is None, reason="needs azurite-blob"),
]
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""That of every Azurite, in its documentation."""
VERSION = "2021-08-06"


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """The address of a running service."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--skipApiVersionCheck"]
    process = subprocess.Popen(["azurite-blob", *options, "--silent", "--disableTelemetry"])
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def make_container(service: str) -> str:
    """The name of a new container. The client makes none, so this is the service's own request."""
    name = f"models-{uuid.uuid4().hex[:12]}"
    date = datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    resource = f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    signed = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{VERSION}\n{resource}"
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()).decode()
    headers = {
        "x-ms-date": date,
        "x-ms-version": VERSION,
        "Authorization": f"SharedKey {ACCOUNT}:{signature}",
        "Content-Length": "0",
    }
    address = f"{service}/{ACCOUNT}/{name}?restype=container"
    urllib.request.urlopen(urllib.request.Request(address, method="PUT", headers=headers)).close()
    return name


class TestAzureBlobStorage(WeightStoreTests):
    """Everything that any store must do."""

    @pytest.fixture
    def store(self, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
        settings = {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": service,
            "AWS_ALLOW_HTTP": "true",
            "WANSTORE_CACHE": str(tmp_path / "cache"),
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        container = make_container(service)
        self.container = AzureStore(container, client_options={"allow_http": True})
        return ObjectStore(f"az://{container}/wan")

    def damage(self, store: WeightStore, name: str, path: str, data: bytes | None) -> None:
        (folder,) = {"/".join(place.split("/")[:3]) for place in self.sizes() if f"wan/{name}/files-" in place}
        if data is None:
            obstore.delete(self.container, f"{folder}/{path}")
        else:
            obstore.put(self.container, f"{folder}/{path}", data)

    def stored_bytes(self, store: WeightStore, tmp_path: Path) -> int:
        return super().stored_bytes(store, tmp_path) + sum(self.sizes().values())

    def sizes(self) -> dict[str, int]:
        """Every blob of the container."""
        return {one["path"]: one["size"] for batch in obstore.list(self.container) for one in batch}
