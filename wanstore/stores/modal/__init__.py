"""Pipelines on a Modal Volume: through the client, or where the Volume is mounted."""

from wanstore.stores.modal._volume import ModalVolumeStore

__all__ = ["ModalVolumeStore"]
