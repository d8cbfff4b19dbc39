"""Pipelines in a bucket of an object store."""

from wanstore.stores.object._store import ObjectStore

__all__ = ["ObjectStore"]
