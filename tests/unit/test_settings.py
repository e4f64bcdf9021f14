"""Where a client and a worker find the servers, by flag, environment and file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from givalia_core.errors import SettingsInvalid
from givalia_core.settings import ClientSettings, WorkerSettings, load


def shown(settings: Any) -> list[str]:
    return [str(address) for address in settings.servers()]


def test_servers_without_a_port_have_that_of_the_program() -> None:
    flags = {"master": "a,b:7"}

    assert shown(load(WorkerSettings, flags, {})) == ["a:12323", "b:7"]
    assert shown(load(WorkerSettings, {**flags, "worker_port": "5"}, {})) == ["a:5", "b:7"]
    assert shown(load(ClientSettings, flags, {})) == ["a:12322", "b:7"]
    assert shown(load(ClientSettings, {}, {"GIVALIA_MASTER": "[::1]:8, c"})) == ["[::1]:8", "c:12322"]


@pytest.mark.parametrize("value", ['"a:1,b:2"', '["a:1", "b:2"]'])
def test_the_file_takes_a_text_or_a_list(tmp_path: Path, value: str) -> None:
    file = tmp_path / "givalia.toml"
    file.write_text(f"[worker]\nmaster = {value}\n")

    assert shown(load(WorkerSettings, {}, {}, file)) == ["a:1", "b:2"]


@pytest.mark.parametrize("value", ["[]", '["a", 7]', '[["a"]]', "7", '"a:x"', '""', '["a", ""]'])
def test_what_is_no_address_is_refused_before_anything_starts(tmp_path: Path, value: str) -> None:
    file = tmp_path / "givalia.toml"
    file.write_text(f"[client]\nmaster = {value}\n")

    with pytest.raises(SettingsInvalid, match="master"):
        load(ClientSettings, {}, {}, file)


def test_other_settings_take_no_list(tmp_path: Path) -> None:
    file = tmp_path / "givalia.toml"
    file.write_text('[worker]\nname = ["a", "b"]\n')

    with pytest.raises(SettingsInvalid, match="is not text"):
        load(WorkerSettings, {}, {}, file)
