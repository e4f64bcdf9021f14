"""Which store a URL means: the schemes are the names in the entry point group `givalia.stores`."""

from __future__ import annotations

from typing import Any, Final

import importlib_metadata

from givalia_core.errors import StoreUnfit
from givalia_core.printable import without_secrets
from givalia_core.settings import ServerSettings
from givalia_core.store import Memory, SQLite
from givalia_core.store.base import Store

GROUP: Final = "givalia.stores"


def open_store(settings: ServerSettings) -> Store:
    """The store of the settings' URL, not yet opened.

    Raises:
        StoreUnfit: No installed store has the URL's scheme, or two have, or what it needs is not there.
    """
    url = settings.store
    scheme = url.partition(":")[0]
    if scheme == "sqlite":
        return SQLite(
            url,
            allow_network=settings.store_on_network,
            create=settings.create,
            may_upgrade=settings.upgrade == "auto",
        )
    if scheme == "memory":
        return Memory(url)
    entries = tuple(importlib_metadata.entry_points(group=GROUP, name=scheme))
    if len(entries) != 1:
        owners = " and ".join(sorted(entry.dist.name for entry in entries if entry.dist)) or "no installed package"
        raise StoreUnfit(f"the scheme {scheme!r} of the store {without_secrets(url)} is served by {owners}")
    try:
        made: Any = entries[0].load()
    except Exception as error:
        raise StoreUnfit(f"the store for the scheme {scheme!r} cannot be loaded: {error}") from error
    store: Store = made(url)
    if hasattr(store, "may_create"):
        store.may_create = settings.create
    if hasattr(store, "may_upgrade"):
        store.may_upgrade = settings.upgrade == "auto"
    return store
