"""Settings by flag, environment, file and in Python: the valid values, and the refusal of all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from givalia_core.errors import SettingsInvalid
from givalia_core.setting_values import STORE, allowed, read
from givalia_core.settings import TABLES, ClientSettings, ServerSettings, WorkerSettings, load


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

    with pytest.raises(SettingsInvalid, match=r"^name is a name .*, not \['a', 'b'\] \(in .*givalia\.toml\)$"):
        load(WorkerSettings, {}, {}, file)


# Lengths.


@pytest.mark.parametrize(("value", "seconds"), [("90", 90.0), ("10m", 600.0), ("1h30m", 5_400.0), ("0.5d", 43_200.0)])
def test_lengths_are_written_with_units_wherever_they_are_given(tmp_path: Path, value: str, seconds: float) -> None:
    file = tmp_path / "givalia.toml"
    file.write_text(f'[server]\nlease = "{value}"\n')

    assert load(ServerSettings, {"lease": value}, {}).lease == seconds
    assert load(ServerSettings, {}, {"GIVALIA_LEASE": value}).lease == seconds
    assert load(ServerSettings, {}, {}, file).lease == seconds


def test_a_length_is_a_number_in_the_file_and_a_number_or_a_timedelta_in_python(tmp_path: Path) -> None:
    file = tmp_path / "givalia.toml"
    file.write_text("[server]\nlease = 45\nbackoff = 0.25\n")

    assert load(ServerSettings, {}, {}, file).policy().lease_us == 45_000_000
    assert ServerSettings(lease=timedelta(minutes=1)).policy().lease_us == 60_000_000  # type: ignore[arg-type]


# Values that cannot be.


@pytest.mark.parametrize(
    ("kind", "flags", "environ", "words"),
    [
        (WorkerSettings, {"block_limit": "0"}, {}, "block_limit is 1 s to 24 h, not '0' (--block-limit)"),
        (
            ServerSettings, {"lease": "10x"}, {},
            "lease is 5 s to 24 h (seconds, or a length such as 10m, 1h30m, 2d), not '10x' (--lease)",
        ),
        (WorkerSettings, {"processes": "-1"}, {}, "processes is 0 to 256, not '-1' (--processes)"),
        (ServerSettings, {}, {"GIVALIA_PORT": "x"}, "port is 0 to 65535, not 'x' (GIVALIA_PORT)"),
        (ServerSettings, {}, {"GIVALIA_PORT": ""}, "port is 0 to 65535, not '' (GIVALIA_PORT)"),
        (ServerSettings, {"log_level": "loud"}, {}, "log_level is debug, info, warning or error, not 'loud' (--log-level)"),
        (ServerSettings, {"store": "//me:secret@host"}, {}, f"store is {STORE.allowed} (--store)"),
        (ServerSettings, {}, {"GIVALIA_INSECURE": "maybe"}, "insecure is yes or no, not 'maybe' (GIVALIA_INSECURE)"),
        (ServerSettings, {"host": "a b"}, {}, "host is a host's name or address, not 'a b' (--host)"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_setting_its_source_and_what_is_allowed(
    kind: type, flags: dict[str, str], environ: dict[str, str], words: str
) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        load(kind, flags, environ)

    assert str(caught.value) == words


def test_settings_that_are_made_in_python_are_checked_too() -> None:
    with pytest.raises(SettingsInvalid, match=r"concurrency is 1 to 8000, not 0 \(given to WorkerSettings\)"):
        WorkerSettings(concurrency=0)


@pytest.mark.parametrize("flags", [{"port": "20001", "worker_port": "20001"}, {"port": "12323"}])
def test_one_port_for_clients_and_workers_is_refused(flags: dict[str, str]) -> None:
    with pytest.raises(SettingsInvalid, match="port and worker_port are two ports"):
        load(ServerSettings, flags, {})


def test_the_system_may_pick_both_ports() -> None:
    assert load(ServerSettings, {"port": "0", "worker_port": "0"}, {}).port == 0


EVERY = [(kind, each.name) for kind in TABLES.values() for each in fields(kind)]
TEXTS = st.one_of(
    st.text(max_size=80),
    st.sampled_from(
        ["", " ", "0", "-1", "1e999", "9" * 5_000, "nan", "-inf", "\u0661\u0662", "1_0", "1__0", "x" * 300, "\ud800"]
    ),
    st.sampled_from(["0x10", "10m", "1h30m", "yes", "*", "a,,b", "tcp://10.0.0.1:1", "\x00", "\u202e", "sqlite:", "[::1]:0"]),
    st.integers().map(str),
    st.floats().map(str),
)
VALUES = st.one_of(
    TEXTS, st.none(), st.booleans(), st.integers(), st.floats(), st.just(10**5_000), st.binary(max_size=9),
    st.lists(TEXTS, max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), st.timedeltas(),
    st.datetimes(),
)  # fmt: skip


def made_or_refused(make: Callable[[], Any]) -> Any:
    """The settings, or the error that refuses them; any other error is raised."""
    try:
        return make()
    except SettingsInvalid as refused:
        return refused


def is_refused_well(error: SettingsInvalid, name: str, kind: type, source: str) -> bool:
    setting = next(each for each in fields(kind) if each.name == name)
    words = allowed(setting, get_type_hints(kind)[name])
    text = str(error)
    return text.startswith(f"{name} is {words}") and text.endswith(f" ({source})") and len(text) < 300


def is_allowed(settings_: Any, name: str) -> bool:
    """Whether the value is of the type of its setting, and is read as itself."""
    kind = type(settings_)
    setting = next(each for each in fields(kind) if each.name == name)
    value, wanted = getattr(settings_, name), get_type_hints(kind)[name]
    return type(value) is wanted and read(setting, wanted, value, "here") == value


@pytest.mark.parametrize(("kind", "name"), EVERY)
@settings(max_examples=60, print_blob=True, deadline=None)
@given(data=st.data())
def test_every_setting_is_as_allowed_or_refused_wherever_its_value_comes_from(kind: type, name: str, data: Any) -> None:
    source = data.draw(st.sampled_from(["flag", "environment", "python"]))
    value = data.draw(VALUES if source == "python" else TEXTS)
    flag, variable = f"--{name.replace('_', '-')}", f"GIVALIA_{name.upper()}"
    ways: dict[str, tuple[str, Callable[[], Any]]] = {
        "flag": (flag, lambda: load(kind, {name: value}, {})),
        "environment": (variable, lambda: load(kind, {}, {variable: value}, notice=lambda words: None)),
        "python": (f"given to {kind.__name__}", lambda: kind(**{name: value})),
    }
    place, make = ways[source]
    made = made_or_refused(make)

    if isinstance(made, SettingsInvalid):
        assert is_refused_well(made, name, kind, place)
    else:
        assert is_allowed(made, name)


@settings(max_examples=200, print_blob=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.text(max_size=60),
        st.sampled_from([
            "server = 5", 'server = "x"', "[server]\nport = " + "9" * 5_000, "[server]\nport = " + "[" * 3_000,
            "[[server]]\nport = 1", "[server]\nport = 1979-05-27", "[server.port]\nx = 1", "[server]\nlease = inf",
        ]),
    )
)  # fmt: skip
def test_no_content_of_a_file_is_anything_but_settings_or_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "givalia.toml"
    file.write_bytes(content.encode("utf-8", "surrogatepass"))

    made = made_or_refused(lambda: load(ServerSettings, {}, {}, file))

    assert isinstance(made, ServerSettings) or str(file) in str(made)


def test_a_file_that_the_environment_names_is_named_in_refusals(tmp_path: Path) -> None:
    file = tmp_path / "givalia.toml"
    file.write_text("[server]\nport = 70000\n")

    with pytest.raises(SettingsInvalid, match=rf"not 70000 \(in {file}\)"):
        load(ServerSettings, {}, {"GIVALIA_CONFIG": str(file)})
    with pytest.raises(SettingsInvalid, match=f"the settings file {tmp_path}: "):
        load(ServerSettings, {}, {"GIVALIA_CONFIG": str(tmp_path)})


# Kubernetes.


@pytest.mark.parametrize(
    ("kind", "variable", "name"),
    [(ServerSettings, "GIVALIA_PORT", "port"), (WorkerSettings, "GIVALIA_WORKER_PORT", "worker_port"),
     (ClientSettings, "GIVALIA_PORT", "port")],
)  # fmt: skip
def test_a_port_that_kubernetes_sets_for_a_service_is_ignored_with_one_line(kind: type, variable: str, name: str) -> None:
    notices: list[str] = []
    environ = {variable: "tcp://10.43.7.1:12322", f"{variable}_12322_TCP_PROTO": "tcp", "GIVALIA_SERVICE_HOST": "10.43.7.1"}

    made = load(kind, {}, environ, notice=notices.append)

    assert getattr(made, name) == getattr(kind(), name)
    (words,) = notices
    assert words.startswith(f"{variable}=tcp://10.43.7.1:12322 is ignored: Kubernetes sets it")


def test_without_a_log_of_a_program_that_line_goes_to_logging(caplog: pytest.LogCaptureFixture) -> None:
    load(ClientSettings, {}, {"GIVALIA_PORT": "tcp://10.43.7.1:12322"})

    assert "is ignored" in caplog.text


def test_only_a_port_is_taken_for_that_of_a_service() -> None:
    with pytest.raises(SettingsInvalid, match="master"):
        load(ClientSettings, {}, {"GIVALIA_MASTER": "tcp://10.43.7.1:12322"})
