"""Which store a URL means, and what of it may be shown."""

from __future__ import annotations

import pytest

from givalia_core.server.stores import without_secrets


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
