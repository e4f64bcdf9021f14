"""What can be set, and where a value comes from: flag, then `GIVALIA_*`, then the TOML file, then the default.

Each setting is one field with its help, limits and unit beside it; the command lines, the environment names and
`docs/settings.md` all come from these fields. Lengths of time are seconds here and microseconds behind this edge.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, TypeVar, get_type_hints

from givalia_core.clock import SECOND_US
from givalia_core.errors import BadRequest, SettingsInvalid
from givalia_core.policy import Policy
from givalia_core.protocol import addresses
from givalia_core.protocol.addresses import Address
from givalia_core.protocol.checks import is_name

CLIENT_PORT: Final = 12322
WORKER_PORT: Final = 12323
PREFIX: Final = "GIVALIA_"
YEAR_S: Final = 365 * 86_400.0
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_ERRORS: Final = ("full", "line")

S = TypeVar("S")


def state_folder() -> Path:
    """Where this user's programs keep what must survive a restart."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "givalia"


def _setting(
    default: Any,
    words: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    is_list: bool = False,
) -> Any:
    return field(
        default=default, metadata={"help": words, "least": least, "most": most, "choices": choices, "is_list": is_list}
    )


@dataclass(frozen=True)
class ServerSettings:
    """The settings of `givalia-server`; the TOML table is `[server]`."""

    host: str = _setting("127.0.0.1", "Address to listen on; anything but loopback needs insecure.")
    port: int = _setting(CLIENT_PORT, "Port for clients; 0 picks a free one.", least=0, most=65535)
    worker_port: int = _setting(WORKER_PORT, "Port for workers; 0 picks a free one.", least=0, most=65535)
    insecure: bool = _setting(False, "Listen on an address that others can reach, without authentication.")
    store: str = _setting(
        "", "URL of the store: sqlite:///path, sqlite:relative, memory:; empty: queue.db in the user's state folder."
    )
    create: bool = _setting(True, "Make the store at the first start; false: refuse to start where there is none.")
    upgrade: str = _setting(
        "auto",
        "What a start does with a store of an earlier format: auto upgrades it and keeps a copy; manual refuses and names the"
        " command.",
        choices=("auto", "manual"),
    )
    store_on_network: bool = _setting(False, "Allow a store on a network file system, whose syncs may lie.")
    store_unsafe: bool = _setting(
        False, "Use a database although it is set to lose what it acknowledged; each answer then names the weaker class."
    )
    hold: bool = _setting(
        False, "Start with a hold: answer everything, and lend no job until givalia resume; the next start has none without it."
    )
    lease: float = _setting(30.0, "Seconds a worker may be silent before its jobs go to another.", least=5, most=86_400)
    max_attempts: int = _setting(5, "Attempts a job has unless it or its module says otherwise.", least=1, most=100)
    backoff: float = _setting(1.0, "Seconds before the second attempt, doubled each time.", least=0, most=YEAR_S)
    backoff_max: float = _setting(600.0, "The longest wait between attempts, in seconds.", least=0, most=YEAR_S)
    retain: float = _setting(3_600.0, "Seconds that done and cancelled jobs are remembered.", least=0, most=10 * YEAR_S)
    retain_max: int = _setting(1_000_000, "How many done and cancelled jobs are remembered.", least=0, most=10**9)
    retain_dead: float = _setting(30 * 86_400.0, "Seconds that dead jobs are remembered.", least=0, most=10 * YEAR_S)
    retain_dead_max: int = _setting(100_000, "How many dead jobs are remembered.", least=0, most=10**9)
    live_max: int = _setting(
        100_000_000, "How many jobs may wait or run; beyond that enq is answered BUSY.", least=1, most=10**9
    )
    memory_max: int = _setting(2_048, "MiB of resident memory beyond which enq is answered BUSY.", least=64, most=10**6)
    connections_max: int = _setting(2_000, "Connections in all.", least=1, most=100_000)
    connections_per_peer_max: int = _setting(200, "Connections from one address.", least=1, most=100_000)
    connections_silent_max: int = _setting(128, "Connections that have not said hello yet.", least=1, most=100_000)
    plugins: str = _setting("*", "Distributions whose plugins are used, separated by commas; *: all that are installed.")
    log_level: str = _setting("info", "How much is logged.", choices=LOG_LEVELS)
    log_file: str = _setting("", "File the log goes to; empty: standard error, or with -d the user's state folder.")

    def __post_init__(self) -> None:
        if not self.store:
            object.__setattr__(self, "store", f"sqlite://{state_folder() / 'queue.db'}")

    def policy(self) -> Policy:
        """The settings that the engine decides by."""
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
class WorkerSettings:
    """The settings of `givalia-worker`; the TOML table is `[worker]`."""

    master: str = _setting("127.0.0.1", f"{_MASTER_WORDS} worker_port.", is_list=True)
    worker_port: int = _setting(WORKER_PORT, "The servers' port for workers, where master names none.", least=1, most=65535)
    name: str = _setting("any", "This worker's name, for jobs that are targeted at it; several may share one.")
    concurrency: int = _setting(100, "How many jobs run at once as greenlets, in one process.", least=1, most=8_000)
    processes: int = _setting(
        4, "How many jobs run at once in a process of their own (isolation = process).", least=0, most=256
    )
    jobs_per_process: int = _setting(
        1_000, "Jobs that such a process runs before a new one takes its place; 0: any number.", least=0
    )
    memory_per_process: int = _setting(
        0, "MiB a process may have: a job's own is killed beyond that, the one with the greenlets replaced; 0: any.", least=0
    )
    only_targeted: bool = _setting(False, "Take only jobs for this worker's name, none for any.")
    grace: float = _setting(30.0, "Seconds that running jobs may take to end when the worker is stopped.", least=0, most=86_400)
    stop_grace: float = _setting(
        5.0, "Seconds between the steps of stopping a job: asked, then made to end, then killed.", least=0.1, most=3_600
    )
    block_limit: float = _setting(
        30.0, "Seconds that a job may hold up its neighbours without yielding; then their process is replaced.", least=1
    )
    hook_limit: float = _setting(
        10.0, "Seconds that one call of a plugin on the worker may take; then it is ended, and the job goes on.", least=0.1
    )
    log_errors: str = _setting(
        "full",
        "What the log has of a job that is dead; full: with the traceback, whose values it may show.",
        choices=LOG_ERRORS,
    )
    watch: bool = _setting(False, "Notice packages that are installed, upgraded or removed, and take them up at once.")
    plugins: str = _setting("*", "Distributions whose plugins are used, separated by commas; *: all that are installed.")
    log_level: str = _setting("info", "How much is logged.", choices=LOG_LEVELS)
    log_file: str = _setting("", "File the log goes to; empty: standard error, or with -d the user's state folder.")

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise SettingsInvalid(f"{self.name!r} cannot be a worker's name: letters, digits, _ . - and no digit first")
        self.servers()

    def servers(self) -> tuple[Address, ...]:
        """Where the servers take workers."""
        return _servers(self.master, self.worker_port)


@dataclass(frozen=True)
class ClientSettings:
    """The settings of `givalia`; the TOML table is `[client]`."""

    master: str = _setting("127.0.0.1", f"{_MASTER_WORDS} port.", is_list=True)
    port: int = _setting(CLIENT_PORT, "The servers' port for clients, where master names none.", least=1, most=65535)

    def __post_init__(self) -> None:
        self.servers()

    def servers(self) -> tuple[Address, ...]:
        """Where the servers take clients."""
        return _servers(self.master, self.port)


def _servers(master: str, port: int) -> tuple[Address, ...]:
    try:
        return addresses.parse(master, port)
    except BadRequest as error:
        raise SettingsInvalid(f"master: {error}") from None


TABLES: Final[dict[str, type]] = {"server": ServerSettings, "worker": WorkerSettings, "client": ClientSettings}


def load(
    kind: type[S], flags: Mapping[str, Any], environ: Mapping[str, str] | None = None, file: str | Path | None = None
) -> S:
    """The settings of one program. `flags` holds what was given on the command line and None for what was not.

    Raises:
        SettingsInvalid: A value is not of its type or outside its limits, or the file has a name that nothing reads.
    """
    environ = os.environ if environ is None else environ
    table = _table(kind, file or environ.get(PREFIX + "CONFIG"))
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for each in fields(kind):  # type: ignore[arg-type]
        name = each.name
        given: tuple[tuple[str, Any], ...] = (
            (f"--{name.replace('_', '-')}", flags.get(name)),
            (PREFIX + name.upper(), environ.get(PREFIX + name.upper())),
            (f"{name} in {file}", table.get(name)),
        )
        for source, value in given:
            if value is not None:
                values[name] = _value(each, hints[name], source, value)
                break
    return kind(**values)


def _table(kind: type, file: str | Path | None) -> dict[str, Any]:
    if not file:
        return {}
    try:
        content = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"{file}: {error}") from None
    section = next(name for name, settings in TABLES.items() if settings is kind)
    for name in content:
        if name not in TABLES:
            raise SettingsInvalid(f"{file}: there is no table [{name}]; the tables are {', '.join(TABLES)}")
    table: dict[str, Any] = content.get(section, {})
    known = {each.name for each in fields(kind)}
    for name in table:
        if name not in known:
            raise SettingsInvalid(f"{file}: [{section}] has no setting {name}")
    return table


_WORDS_FOR_TRUE, _WORDS_FOR_FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def _value(each: Field[Any], wanted: type, source: str, value: Any) -> Any:
    """A given value as the type of its setting, within its limits."""
    converted = _converted(wanted, _joined(value) if each.metadata["is_list"] else value)
    if converted is None:
        raise SettingsInvalid(f"{source}: {value!r} is not {_KIND_WORDS[wanted]}")
    limits = each.metadata
    if limits["choices"] and converted not in limits["choices"]:
        raise SettingsInvalid(f"{source}: {value!r} is none of {', '.join(limits['choices'])}")
    least, most = limits["least"], limits["most"]
    if (least is not None and not converted >= least) or (most is not None and not converted <= most):
        raise SettingsInvalid(f"{source}: {value} is not between {least:g} and {most:g}")
    return converted


def _joined(value: Any) -> Any:
    """A list of texts as the one text that flags and environment have for it."""
    is_list = isinstance(value, list) and all(isinstance(each, str) for each in value)
    return ",".join(value) if is_list else value


_KIND_WORDS: Final = {bool: "yes or no", int: "a whole number", float: "a number", str: "text"}


def _converted(wanted: type, value: Any) -> Any:
    if wanted is bool:
        return _bool(value)
    if wanted is str:
        return value if isinstance(value, str) else None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return int(value) if wanted is int and not isinstance(value, float) else wanted(value)
    except ValueError:
        return None


def _bool(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    return True if word in _WORDS_FOR_TRUE else False if word in _WORDS_FOR_FALSE else None
