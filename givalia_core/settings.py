"""The settings, and the order of their sources: flag, then `GIVALIA_*`, then the TOML file, then the default.

Each setting is one field with its help, limits and unit. The command line, the environment names and `docs/settings.md` are
made from these fields, and `setting_values` reads the values. Lengths of time are seconds here and microseconds in the core.
"""

from __future__ import annotations

import logging
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeVar, get_type_hints

from givalia_core.clock import SECOND_US
from givalia_core.errors import SettingsInvalid
from givalia_core.policy import Policy
from givalia_core.printable import printable
from givalia_core.protocol import addresses
from givalia_core.protocol.addresses import Address
from givalia_core.setting_values import HOST, PLUGINS, SERVERS, SHOWN_CHARS_MAX, STORE, WORKER, read
from givalia_core.setting_values import setting as _setting

CLIENT_PORT: Final = 12322
WORKER_PORT: Final = 12323
PREFIX: Final = "GIVALIA_"
YEAR_S: Final = 365 * 86_400.0
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_ERRORS: Final = ("full", "line")

S = TypeVar("S")

log = logging.getLogger("givalia.settings")
_SERVICE_LINK = re.compile(r"(?:tcp|udp|sctp)://").match


def state_folder() -> Path:
    """Return the folder in which this user's programs keep files that must survive a restart."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "givalia"


class _Checked:
    """Settings whose values are checked, whatever their source."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for each in fields(self):  # type: ignore[arg-type]
            value = read(each, hints[each.name], getattr(self, each.name), f"given to {type(self).__name__}")
            object.__setattr__(self, each.name, value)


@dataclass(frozen=True)
class ServerSettings(_Checked):
    """The settings of `givalia-server`; the TOML table is `[server]`."""

    host: str = _setting("127.0.0.1", "Address to listen on; anything but loopback needs insecure.", form=HOST)
    port: int = _setting(CLIENT_PORT, "Port for clients; 0 picks a free one.", least=0, most=65535)
    worker_port: int = _setting(WORKER_PORT, "Port for workers; 0 picks a free one.", least=0, most=65535)
    insecure: bool = _setting(False, "Listen on an address that others can reach, without authentication.")
    store: str = _setting(
        "",
        "URL of the store: sqlite:///path, sqlite:relative, memory:; empty: queue.db in the user's state folder.",
        form=STORE,
    )
    create: bool = _setting(True, "Create the store at the first start; false: refuse to start if there is none.")
    upgrade: str = _setting(
        "auto",
        "How a start treats a store of an earlier format: auto upgrades it and keeps a copy; manual refuses and names the"
        " command.",
        choices=("auto", "manual"),
    )
    store_on_network: bool = _setting(False, "Allow a store on a network file system, whose syncs may lie.")
    store_unsafe: bool = _setting(
        False, "Use a database whose settings may lose acknowledged data; each answer then names the weaker class."
    )
    hold: bool = _setting(
        False, "Start with a hold: answer everything, but lend no job until givalia resume. The next start needs it again."
    )
    lease: float = _setting(30.0, "How long a worker may be silent before its jobs go to another.", least=5, most=86_400)
    max_attempts: int = _setting(5, "Attempts of a job, unless the job or its module says otherwise.", least=1, most=100)
    backoff: float = _setting(1.0, "Wait before the second attempt, doubled each time.", least=0, most=YEAR_S)
    backoff_max: float = _setting(600.0, "The longest wait between attempts.", least=0, most=YEAR_S)
    retain: float = _setting(3_600.0, "How long done and cancelled jobs are remembered.", least=0, most=10 * YEAR_S)
    retain_max: int = _setting(1_000_000, "How many done and cancelled jobs are remembered.", least=0, most=10**9)
    retain_dead: float = _setting(30 * 86_400.0, "How long dead jobs are remembered.", least=0, most=10 * YEAR_S)
    retain_dead_max: int = _setting(100_000, "How many dead jobs are remembered.", least=0, most=10**9)
    live_max: int = _setting(
        100_000_000, "How many jobs may wait or run; beyond that enq is answered BUSY.", least=1, most=10**9
    )
    memory_max: int = _setting(2_048, "MiB of resident memory beyond which enq is answered BUSY.", least=64, most=10**6)
    connections_max: int = _setting(2_000, "Connections in all.", least=1, most=100_000)
    connections_per_peer_max: int = _setting(200, "Connections from one address.", least=1, most=100_000)
    connections_silent_max: int = _setting(128, "Connections that have not said hello yet.", least=1, most=100_000)
    plugins: str = _setting("*", "Distributions whose plugins are used, separated by commas; *: all installed.", form=PLUGINS)
    log_level: str = _setting("info", "How much is logged.", choices=LOG_LEVELS)
    log_file: str = _setting("", "File the log goes to; empty: standard error, or with -d the user's state folder.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.port and self.port == self.worker_port:
            raise SettingsInvalid(
                f"port and worker_port are two ports, one for clients and one for workers, not both {self.port}"
            )
        if not self.store:
            object.__setattr__(self, "store", f"sqlite://{state_folder() / 'queue.db'}")

    def policy(self) -> Policy:
        """Return the settings that the engine's decisions depend on."""
        return Policy(
            lease_us=round(self.lease * SECOND_US),
            max_attempts=self.max_attempts,
            backoff_us=round(self.backoff * SECOND_US),
            backoff_max_us=round(self.backoff_max * SECOND_US),
            retain_us=round(self.retain * SECOND_US),
            retain_max=self.retain_max,
            retain_dead_us=round(self.retain_dead * SECOND_US),
            retain_dead_max=self.retain_dead_max,
            live_max=self.live_max,
        )


_MASTER_WORDS: Final = "Hosts of the servers, separated by commas (in TOML also a list); HOST:PORT for one whose port is not"


@dataclass(frozen=True)
class WorkerSettings(_Checked):
    """The settings of `givalia-worker`; the TOML table is `[worker]`."""

    master: str = _setting("127.0.0.1", f"{_MASTER_WORDS} worker_port.", is_list=True, form=SERVERS)
    worker_port: int = _setting(WORKER_PORT, "The servers' port for workers, where master names none.", least=1, most=65535)
    name: str = _setting("any", "This worker's name, for jobs that target it; several workers may share one.", form=WORKER)
    concurrency: int = _setting(100, "How many jobs run at once as greenlets, in one process.", least=1, most=8_000)
    processes: int = _setting(
        4, "How many jobs run at once in a process of their own (isolation = process).", least=0, most=256
    )
    jobs_per_process: int = _setting(
        1_000, "Jobs that such a process runs before a new one replaces it; 0: any number.", least=0, most=10**9
    )
    memory_per_process: int = _setting(
        0,
        "MiB a process may use; beyond that, a job's own process is killed and the greenlets' process replaced; 0: no limit.",
        least=0,
        most=10**7,
    )
    only_targeted: bool = _setting(False, "Take only jobs that target this worker's name, not those for any worker.")
    grace: float = _setting(30.0, "How long running jobs may take to end when the worker is stopped.", least=0, most=86_400)
    stop_grace: float = _setting(
        5.0, "Time between the steps of stopping a job: ask it, interrupt it, kill it.", least=0.1, most=3_600
    )
    block_limit: float = _setting(
        30.0,
        "How long a job may block its neighbours without yielding; then their process is replaced.",
        least=1,
        most=86_400,
    )
    hook_limit: float = _setting(
        10.0,
        "How long one call of a plugin on the worker may take; then the call is interrupted, and the job goes on.",
        least=0.1,
        most=86_400,
    )
    log_errors: str = _setting(
        "full",
        "How the log reports a dead job; full: with its traceback, which may show values.",
        choices=LOG_ERRORS,
    )
    watch: bool = _setting(False, "Notice installed, upgraded and removed packages, and reload at once.")
    plugins: str = _setting("*", "Distributions whose plugins are used, separated by commas; *: all installed.", form=PLUGINS)
    log_level: str = _setting("info", "How much is logged.", choices=LOG_LEVELS)
    log_file: str = _setting("", "File the log goes to; empty: standard error, or with -d the user's state folder.")

    def servers(self) -> tuple[Address, ...]:
        """Return the addresses at which the servers accept workers."""
        return addresses.parse(self.master, self.worker_port)


@dataclass(frozen=True)
class ClientSettings(_Checked):
    """The settings of `givalia`; the TOML table is `[client]`."""

    master: str = _setting("127.0.0.1", f"{_MASTER_WORDS} port.", is_list=True, form=SERVERS)
    port: int = _setting(CLIENT_PORT, "The servers' port for clients, where master names none.", least=1, most=65535)

    def servers(self) -> tuple[Address, ...]:
        """Return the addresses at which the servers accept clients."""
        return addresses.parse(self.master, self.port)


TABLES: Final[dict[str, type]] = {"server": ServerSettings, "worker": WorkerSettings, "client": ClientSettings}


def flag(name: str) -> str:
    """Return the flag of a setting on the command line."""
    return f"--{name.replace('_', '-')}"


def load(
    kind: type[S],
    flags: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
    file: str | Path | None = None,
    notice: Callable[[str], object] = log.warning,
    name: Callable[[str], str] = flag,
) -> S:
    """Return the settings of one program.

    Args:
        kind: The program's class of settings.
        flags: The values of the command line or of arguments; None for each that was not given.
        environ: The environment; None: that of this process.
        file: The settings file; None: the file that the environment names, if any.
        notice: Called with a line for each variable that is ignored.
        name: Returns the words by which a refusal names a setting from `flags`.

    Raises:
        SettingsInvalid: A value has the wrong type or exceeds its limits, or the file's table has an unknown name.
    """
    environ = os.environ if environ is None else environ
    file = file or environ.get(PREFIX + "CONFIG")
    table = _table(kind, file)
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for each in fields(kind):  # type: ignore[arg-type]
        variable = PREFIX + each.name.upper()
        if (value := flags.get(each.name)) is not None:
            source = name(each.name)
        elif (value := from_environment(variable, environ, notice)) is not None:
            source = variable
        elif (value := table.get(each.name)) is not None:
            source = f"in {file}"
        else:
            continue
        values[each.name] = read(each, hints[each.name], value, source)
    return kind(**values)


def from_environment(variable: str, environ: Mapping[str, str], notice: Callable[[str], object] = log.warning) -> str | None:
    """Return the value of a `GIVALIA_*` variable; None if it is not set, or if Kubernetes set it (`notice` then gets a line).

    For a Service `givalia`, Kubernetes gives each pod GIVALIA_PORT=tcp://10.43.7.1:12322; likewise for `givalia-worker`.
    """
    value = environ.get(variable)
    if value is None or not (variable.endswith("_PORT") and _SERVICE_LINK(value)):
        return value
    words = "Kubernetes sets it for a Service of that name; enableServiceLinks: false keeps it out of a pod"
    notice(f"{variable}={printable(value[:SHOWN_CHARS_MAX])} is ignored: {words}")
    return None


def _table(kind: type, file: str | Path | None) -> dict[str, Any]:
    if not file:
        return {}
    try:
        content = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not TOML, not UTF-8, or a number with too many digits.
        raise SettingsInvalid(f"the settings file {file}: {error}") from None
    section = next(name for name, settings in TABLES.items() if settings is kind)
    for name, table in content.items():
        if name not in TABLES:
            raise SettingsInvalid(f"the settings file {file}: there is no table [{name}]; the tables are {', '.join(TABLES)}")
        if not isinstance(table, dict):
            raise SettingsInvalid(f"the settings file {file}: {name} is a table, [{name}], and not a value")
    found: dict[str, Any] = content.get(section, {})
    known = {each.name for each in fields(kind)}
    for name in found:
        if name not in known:
            raise SettingsInvalid(f"the settings file {file}: [{section}] has no setting {name}")
    return found
