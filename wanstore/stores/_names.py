"""Names and addresses of stored pipelines."""

from __future__ import annotations

import re

from wanstore.errors import InvalidNameError

STORE_VARIABLE = "WANSTORE_STORE"
"""The environment variable with the store of whoever names none; empty is as if it were not set."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


def check_name(name: str) -> str:
    """`name`, when it may name a pipeline: letters, digits and `._+-`, no dot first, 128 characters at most."""
    if not _NAME.fullmatch(name):
        raise InvalidNameError(
            f"{name!r} cannot name a pipeline",
            "Use letters, digits, '.', '_', '+' and '-', and start with a letter or a digit",
        )
    return name


def split_address(address: str) -> tuple[str, str]:
    """`modal://volume/name` or `folder/name` as the store's URL and the pipeline's name."""
    store, slash, name = address.rstrip("/").rpartition("/")
    if store.endswith(":/") or (slash and not store and "://" in address):
        raise InvalidNameError(f"{address!r} names a store, not a pipeline", "Add the pipeline's name: STORE/NAME")
    if not slash:
        return ".", check_name(name)
    return store or "/", check_name(name)
