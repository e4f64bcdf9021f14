"""The store of a URL, and the parts of the URL that may be shown."""

from __future__ import annotations

from pathlib import Path

import importlib_metadata
import pytest

from givalia_core.errors import StoreUnfit
from givalia_core.printable import without_secrets
from givalia_core.server.stores import open_store
from givalia_core.settings import ServerSettings


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///var/lib/q.db", "sqlite:///var/lib/q.db"),
        ("postgresql://me@db/app", "postgresql://me@db/app"),
        ("postgresql://me:s3cret@db:5432/app", "postgresql://me@db:5432/app"),
        ("postgresql://me:a%40b@one,two/app?x=1", "postgresql://me@one,two/app?x=1"),
        ("postgresql:///app?user=me&password=s3cret&host=/run", "postgresql:///app?user=me&password=...&host=/run"),
        ("postgresql://db/app?sslpassword=s3cret", "postgresql://db/app?sslpassword=..."),
    ],
)
def test_shown_url_has_no_password(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_store_whose_package_cannot_be_loaded_is_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    about = tmp_path / "broken-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 0\n")
    (about / "entry_points.txt").write_text("[givalia.stores]\nbroken = broken_store:Store\n")
    (tmp_path / "broken_store.py").write_text("raise ImportError('no such library')\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    # when, then
    with pytest.raises(StoreUnfit, match="'broken' cannot be loaded: no such library"):
        open_store(ServerSettings(store="broken://somewhere"))


@pytest.mark.parametrize(("url", "named"), [("sqlite:queue.db", "SQLite"), ("memory:", "Memory")])
def test_our_own_stores_are_found_by_their_entry_points_too(url: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServerSettings(store=url, create=False, upgrade="auto", store_on_network=True)

    store = open_store(settings)

    assert type(store).__name__ == named
    if named == "SQLite":
        assert not store.may_create  # type: ignore[attr-defined]
        assert store.may_upgrade  # type: ignore[attr-defined]
        assert store.allow_network  # type: ignore[attr-defined]


def test_a_givalia_without_metadata_says_that_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib_metadata, "entry_points", lambda **_: importlib_metadata.EntryPoints())

    with pytest.raises(StoreUnfit, match=r"served by no installed package\. Givalia itself is not installed"):
        open_store(ServerSettings(store="sqlite:queue.db"))
