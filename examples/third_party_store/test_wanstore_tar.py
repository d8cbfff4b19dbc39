"""wanstore's own suite for stores, on this one."""

import tarfile

import pytest
from wanstore_tar import TarStore

from wanstore.testing import WeightStoreTests


class TestTarStore(WeightStoreTests):
    """Every test of the suite is inherited."""

    @pytest.fixture
    def store(self, tmp_path):
        return TarStore(f"tar://{tmp_path}/archives")

    def damage(self, store, name, path, data):
        folder = store.local_path(name)  # a copy: what is changed in it has to go back into the archive
        super().damage(store, name, path, data)
        with tarfile.open(store.archive(name), "w") as archive:
            archive.add(folder, arcname="")
