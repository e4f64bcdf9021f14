"""The servers of a client: by arguments, in a job, by settings, and by default."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from givalia_core import AsyncClient, Client, job_servers
from givalia_core.errors import BadRequest, SettingsInvalid

KINDS = pytest.mark.parametrize("kind", [Client, AsyncClient])


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIVALIA_MASTER", "GIVALIA_PORT", "GIVALIA_CONFIG", job_servers.VARIABLE):
        monkeypatch.delenv(name, raising=False)


def found(client: Any) -> list[str]:
    return [str(address) for address in client._find()]


@KINDS
def test_without_a_word_it_is_the_server_of_this_machine(kind: Any) -> None:
    assert found(kind()) == found(kind.from_settings()) == ["127.0.0.1:12322"]


@KINDS
def test_settings_are_read_as_the_command_line_reads_them(kind: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "givalia.toml"
    file.write_text('[client]\nmaster = ["one", "two:5"]\nport = 4\n')

    assert found(kind.from_settings(config=file)) == ["one:4", "two:5"]
    monkeypatch.setenv("GIVALIA_CONFIG", str(file))
    assert found(kind.from_settings()) == ["one:4", "two:5"]
    monkeypatch.setenv("GIVALIA_PORT", "6")
    assert found(kind.from_settings()) == ["one:6", "two:5"]
    assert found(kind.from_settings("three", 7)) == ["three:7"]
    assert found(kind.from_settings(["three", "four:8"])) == ["three:6", "four:8"]
    assert found(kind()) == ["127.0.0.1:12322"]  # Only one that asks for the settings has them.


@KINDS
def test_a_setting_that_cannot_be_used_is_refused_when_the_client_is_made(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIVALIA_PORT", "0")

    with pytest.raises(SettingsInvalid, match=r"port is 1 to 65535, not '0' \(GIVALIA_PORT\)"):
        kind.from_settings()
    with pytest.raises(SettingsInvalid, match=r"port is 1 to 65535, not 0 \(the argument port\)"):
        kind.from_settings(port=0)
    with pytest.raises(SettingsInvalid, match=r"not 'a:b:c' \(the argument host\)"):
        kind.from_settings("a:b:c", 1)
    for resend in (0, -1, timedelta()):
        with pytest.raises(BadRequest, match="resend is more than 0, not "):
            kind(resend=resend)
    with pytest.raises(BadRequest, match="resend is"):
        kind.from_settings(port=1, resend="long")


@KINDS
def test_in_a_job_it_is_the_servers_of_the_worker_unless_some_are_given(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made_at_import = kind()
    monkeypatch.setenv("GIVALIA_MASTER", "elsewhere")
    monkeypatch.setenv(job_servers.VARIABLE, "one:4,[::1]:5")

    assert found(made_at_import) == found(kind()) == found(kind.from_settings()) == ["one:4", "[::1]:5"]
    assert found(kind(port=6)) == ["127.0.0.1:6"]
    assert found(kind("two")) == ["two:12322"]
    assert found(kind.from_settings(port=6)) == ["elsewhere:6"]


def test_it_is_decided_at_the_first_command_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    monkeypatch.setenv(job_servers.VARIABLE, "one:4")

    transport: Any = client._transport
    monkeypatch.setenv(job_servers.VARIABLE, "two:4")

    assert client._transport is transport
    assert [str(address) for address in transport.delivery.failover.servers] == ["one:4"]
    client.close()
