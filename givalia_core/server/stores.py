"""Stores by URL: the schemes are the names in the entry point group `givalia.stores`, also for our own stores."""

from __future__ import annotations

from typing import Any, Final

import importlib_metadata

from givalia_core.errors import StoreUnfit
from givalia_core.installed import owner
from givalia_core.printable import without_secrets
from givalia_core.settings import ServerSettings
from givalia_core.store.base import Store

GROUP: Final = "givalia.stores"


def open_store(settings: ServerSettings) -> Store:
    """Return the store of the settings' URL, not yet opened.

    The attributes `may_create`, `may_upgrade` and `allow_network` of the store, as far as it has them, are set to what the
    settings allow.

    Raises:
        StoreUnfit: No installed store has the URL's scheme, or two have it, or the store cannot be loaded.
    """
    url = settings.store
    scheme = url.partition(":")[0]
    known = importlib_metadata.entry_points(group=GROUP)
    entries = tuple(known.select(name=scheme))
    if len(entries) != 1:
        owners = " and ".join(sorted(owner(entry)[0] for entry in entries)) or "no installed package"
        way_out = "" if known else ". Givalia itself is not installed: pip install it, so that Python knows its stores"
        raise StoreUnfit(f"the scheme {scheme!r} of the store {without_secrets(url)} is served by {owners}{way_out}")
    try:
        made: Any = entries[0].load()
    except Exception as error:
        raise StoreUnfit(f"the store for the scheme {scheme!r} cannot be loaded: {error}") from error
    store: Store = made(url)
    allowed = {
        "may_create": settings.create,
        "may_upgrade": settings.upgrade == "auto",
        "allow_network": settings.store_on_network,
    }
    for name, value in allowed.items():
        if hasattr(store, name):
            setattr(store, name, value)
    return store
