"""`givalia modules` and `givalia plugins`: the modules that workers serve, and the packages installed here."""

from __future__ import annotations

import argparse
from typing import Any, Final

from givalia_core.cli import show
from givalia_core.client import Client
from givalia_core.headline import headline

PLUGIN_FIELDS: Final = ("name", "distribution", "version", "source", "error")


def modules_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `modules`."""
    parser.add_argument("--local", action="store_true", help="the modules installed in this environment; needs no server")


def modules(client: Client, given: argparse.Namespace) -> None:
    """Show the modules of the connected workers, or those installed here."""
    rows = _local_modules() if given.local else list(client.modules())
    if given.json:
        show.emit(show.to_json(rows))
        return
    show.table(
        ("module", "worker", "distribution", "version", "isolation", "served"),
        [(r["module"], r["worker"], r["distribution"], r["version"], r["isolation"], _is_served(r["broken"])) for r in rows],
    )


def _is_served(broken: str | None) -> str:
    return "yes" if broken is None else "no: " + headline(broken)


def _local_modules() -> list[dict[str, Any]]:
    from givalia_core.modules import discover  # Imported here because other verbs must start fast.

    return [
        {
            "module": found.name,
            "worker": None,
            "distribution": found.distribution,
            "version": found.version,
            "isolation": found.isolation,
            "broken": found.broken,
        }
        for found in discover().values()
    ]


def plugins(_: Client, given: argparse.Namespace) -> None:
    """Show the plugins installed here."""
    from givalia_core.hooks import discover  # Imported here because other verbs must start fast.

    rows = [tuple(getattr(each, name) for name in PLUGIN_FIELDS) for each in discover()]
    if given.json:
        show.emit(show.to_json([dict(zip(PLUGIN_FIELDS, row, strict=True)) for row in rows]))
    else:
        show.table(("plugin", *PLUGIN_FIELDS[1:]), rows)
