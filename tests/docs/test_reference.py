"""Everything that exists is documented, nothing else is, and the generated parts are up to date."""

from __future__ import annotations

import argparse
import ast
import errno
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from docs_pages import (
    DOCS,
    EVERY,
    README,
    README_JA,
    ROOT,
    anchors,
    blocks,
    headings,
    links,
    named,
    prose,
    rows,
    section,
    text,
)
from docs_stage import Stage

import givalia_core
from givalia_core import AsyncClient, Client, Status, WorkModule, errors, hooks, why
from givalia_core.cli import common
from givalia_core.cli.main import VERBS
from givalia_core.client import JobHandle
from givalia_core.client.handles import AsyncJobHandle
from givalia_core.engine import words as words_room
from givalia_core.job_servers import VARIABLE
from givalia_core.model import JobState, OutcomeKind
from givalia_core.protocol import codec, frames, messages
from givalia_core.protocol.codec import TABLE
from givalia_core.protocol.messages import Kind
from givalia_core.settings import PREFIX, TABLES

PROTOCOL = DOCS / "protocol.md"
SHOWN_JOB = bytes.fromhex("0195d6c07a8070008000" + "0000000000aa")


def _record(kind: Kind) -> type:
    told = {Kind.DISPATCH: messages.Dispatch, Kind.STOP: messages.Stop, Kind.PROGRESSED: messages.Progressed}
    return told[kind] if kind in told else TABLE[kind].record


# Made by a script.


def test_generated_parts_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, DOCS / "generate.py", "--check"], capture_output=True, text=True, check=False)

    assert done.returncode == 0, f"{done.stderr}\nrun: python docs/generate.py"


# The wire.


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.ANSWER], ids=lambda kind: kind.name)
def test_fields_of_a_kind_are_documented_in_order_with_their_defaults(kind: Kind) -> None:
    record: Any = _record(kind)
    written = section(PROTOCOL, kind.name)
    tables = [table for table in re.split(r"\n\n", written) if table.startswith("| field |")]

    documented = [(row[0].strip("`"), row[2].strip("`")) for row in rows(tables[-1])] if tables else []

    defaults = record._field_defaults
    expected = [(name, _default(defaults[name]) if name in defaults else "required") for name in record._fields]
    assert written, f"protocol.md has no heading {kind.name}"
    assert documented == [(name, default) for name, default in expected if name != "payload"]


def test_first_item_of_a_dispatch_is_documented() -> None:
    first = section(PROTOCOL, "DISPATCH").split("Each other item")[0]

    assert [row[0].strip("`") for row in rows(first)] == list(messages.Heard._fields)


def _default(value: Any) -> str:
    words = {None: "nil", b"": "empty"}
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else words.get(value, str(value))


INNER = {
    "address",
    "agent",
    "raised", "silenced", "waiting", "answers", "bytes", "bytes_max", "ready_age_us", "untaken", "since_us", "words",
}  # fmt: skip
"""Keys of maps within the answers."""


def test_what_answers_hold_is_documented(stage: Stage) -> None:
    with Client("127.0.0.1", stage.port) as client:
        client.enq("Sample", time=600, key="reference")
        shown = {
            "INFO": client.info(),
            "MODULES": next(iter(client.modules())),
            "WORKERS": next(iter(client.workers())),
        }
        client.cancel("reference")

    for heading, answered in shown.items():
        documented = set(re.findall(r"`([a-z_]+)`", section(PROTOCOL, heading)))
        assert set(answered) <= documented, heading
        assert documented - set(answered) <= INNER, heading


def test_map_of_a_status_is_documented() -> None:
    source = inspect.getsource(sys.modules["givalia_core.engine.words"].status)
    told = re.findall(r'^ +"([a-z_]+)":', source, re.MULTILINE)

    maps = section(PROTOCOL, "STAT").split("`status` is a map:")[1]
    documented = [name for row in rows(maps) for name in re.findall(r"`([a-z_]+)`", row[0])]

    assert documented == told


def test_shown_frames_are_what_the_code_makes() -> None:
    shown = {block.info: block.code for block in blocks(PROTOCOL) if block.language == "hex"}
    sample = messages.Enq(SHOWN_JOB, "Sample", 10_000_000, "cart-7", payload=msgpack.packb("parameter sample"))

    hello = frames.MAGIC + frames.encode(Kind.HELLO, 1, [codec.item(messages.Hello(1, 1, "demo"))])
    enq = frames.encode(Kind.ENQ, 2, [codec.item(sample)])
    answer = frames.encode(Kind.ANSWER, 2, [((messages.OK, SHOWN_JOB, 1_750_000_010_000_000, "fsync"), b"")])

    assert {name: _bytes(code) for name, code in shown.items()} == {"hello": hello, "enq": enq, "answer": answer}


def _bytes(code: str) -> bytes:
    """The bytes of a hex block: what stands under the first line of `hello` are words."""
    lines = [line for line in code.splitlines() if re.fullmatch(r"[0-9a-f ]+", line)]
    return bytes.fromhex(" ".join(lines))


# The words of users.


@pytest.mark.parametrize("verb", ["enq", "stat", "cancel", "ext", "requeue", "list", "info", "modules", "workers"])
def test_a_verb_has_one_name_everywhere(verb: str) -> None:
    assert Kind[verb.upper()]
    assert callable(getattr(Client, verb))
    assert verb in VERBS
    assert section(PROTOCOL, verb.upper())
    assert section(DOCS / "command-line.md", verb)
    assert f"**{verb}**" in text(DOCS / "glossary.md")


def test_every_verb_of_the_command_line_is_documented_and_no_other() -> None:
    documented = [words for depth, words in headings(DOCS / "command-line.md") if depth == 3]

    assert documented == list(VERBS)


def test_every_hook_is_documented_with_its_arguments_and_no_other() -> None:
    documented = [words for depth, words in headings(DOCS / "hooks.md") if depth == 3]

    signatures = {name: list(inspect.signature(getattr(hooks.Specs, name)).parameters)[1:] for name in hooks.HOOKS}
    assert sorted(documented) == sorted(f"{name}({', '.join(arguments)})" for name, arguments in signatures.items())


@pytest.mark.parametrize("hook", hooks.HOOKS)
def test_a_hook_says_when_where_and_whether_it_may_block(hook: str) -> None:
    heading = next(words for _, words in headings(DOCS / "hooks.md") if words.startswith(f"{hook}("))

    said = re.findall(r"^- \*\*(\w+)\*\*:", section(DOCS / "hooks.md", heading), re.MULTILINE)

    assert said == ["When", "Where", "May"]


def test_every_kind_of_outcome_and_every_state_is_documented() -> None:
    outcomes = section(DOCS / "hooks.md", "What they are handed")
    assert set(OutcomeKind) <= set(re.findall(r"^\| `(\w+)` \|", outcomes, re.MULTILINE))

    states = [row[0].strip("`") for row in rows(text(DOCS / "lifecycle.md"))]
    assert states == [str(state) for state in JobState]


def test_every_name_of_the_package_is_on_a_page() -> None:
    pages = "\n".join(text(page) for page in EVERY)

    unknown = [name for name in givalia_core.__all__ if not re.search(rf"\b{name}\b", pages)]

    assert unknown in ([], ["__version__"])


def _public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def _read(member: Any) -> Any:
    """The function that is called for a member: a property is read by one."""
    return member.fget if isinstance(member, property) else member


@pytest.mark.parametrize(("one", "other"), [(Client, AsyncClient), (JobHandle, AsyncJobHandle)], ids=lambda cls: cls.__name__)
def test_both_clients_have_the_same_verbs_with_the_same_arguments(one: type, other: type) -> None:
    assert _public(one) == _public(other)
    for name in _public(one):
        takes, takes_too = (list(inspect.signature(_read(getattr(cls, name))).parameters.values()) for cls in (one, other))
        assert [(each.name, each.kind, each.default) for each in takes] == [
            (each.name, each.kind, each.default) for each in takes_too
        ]
        assert inspect.getdoc(getattr(one, name))


@pytest.mark.parametrize("cls", [Client, JobHandle, Status, WorkModule], ids=lambda cls: cls.__name__)
def test_every_public_name_of_a_class_is_documented(cls: type) -> None:
    written = section(DOCS / "python.md", cls.__name__)

    documented = set(re.findall(r"`(\w+)[(`]", written))
    expected = _public(cls) | set(getattr(cls, "__dataclass_fields__", ()))
    assert {name for name in expected - {"process"} if name not in documented} == set()


# Nothing that does not exist.


def _codes() -> set[str]:
    return {cls.code for cls in errors.every()}


@pytest.mark.parametrize("page", EVERY, ids=named)
def test_names_in_capitals_exist(page: Path) -> None:
    plugins = {
        name for readme in (ROOT / "plugins").glob("*/README.md") for name in re.findall(r"GIVALIA_[A-Z_]+", text(readme))
    }
    settings = {PREFIX + name.upper() for kind in TABLES.values() for name in kind.__dataclass_fields__}
    settings |= {"GIVALIA_CONFIG", VARIABLE}
    words = {"UNSERIALIZABLE", "UNREADABLE", "TRANSITIONS", "VERBS", "WAL", "FULL", "KEY", "WHAT", "MODULE", "FILE", "SHELL"}
    words |= {"PYTHON", "PYTHONS", "NO_COLOR", "GIVALIA_TRACEBACK", "DJANGO_SETTINGS_MODULE"}
    known = _codes() | {kind.name for kind in Kind} | settings | plugins | words | set(errno.errorcode.values()) | {"ERROR"}

    said = set(re.findall(r"`([A-Z][A-Z_]+[A-Z])`|\b(GIVALIA_[A-Z_]*[A-Z])", prose(page)))
    said = {name for pair in said for name in pair if name}

    assert said <= known, said - known


# The page of figures says how other programs were started.
@pytest.mark.parametrize("page", [page for page in EVERY if page != DOCS / "benchmarks.md"], ids=named)
def test_flags_exist(page: Path) -> None:
    flags = {"--help", "--version", "--patience", "--json", "--daemon", "--config", "--check"}
    for kind in TABLES.values():
        parser = argparse.ArgumentParser(add_help=False)
        common.add_settings(parser, kind)
        flags |= set(parser._option_string_actions)
    for verb in VERBS.values():
        parser = argparse.ArgumentParser(add_help=False)
        verb.arguments(parser)
        flags |= set(parser._option_string_actions)
    of_others = {"--on-active"}  # Of `systemd-run`.

    said = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text(page)))

    assert said <= flags | of_others, said - flags


@pytest.mark.parametrize("page", EVERY, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for words, target in links(page):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        led = (page.parent / path).resolve() if path else page
        assert led.exists(), f"[{words}]({target})"
        assert not anchor or anchor in anchors(led), f"[{words}]({target})"


def test_functions_that_are_linked_are_in_their_files() -> None:
    linked = [(words, target) for words, target in links(DOCS / "architecture.md") if target.endswith(".py")]

    for words, target in linked:
        name = words.strip("`").split(".")[-1].rstrip("/")
        source = text((DOCS / target).resolve())
        is_there = re.search(rf"(def|class) {name}\b|^{name}: Final", source, re.MULTILINE)
        assert name in ("py", "pipeline") or is_there, f"{target} has no {words}"


def test_every_decision_says_context_decision_and_consequence() -> None:
    decisions = sorted((DOCS / "decisions").glob("*.md"))

    for number, page in enumerate(decisions, 1):
        assert page.name.startswith(f"{number:04}-")
        assert [words for depth, words in headings(page) if depth == 2] == ["Context", "Decision", "Consequence"]


def test_dependencies_have_their_reasons() -> None:
    wanted = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]["dependencies"]
    for plugin in (ROOT / "plugins").glob("*/pyproject.toml"):
        wanted += tomllib.loads(text(plugin))["project"]["dependencies"]
    reasons = text(DOCS / "decisions" / "0001-dependencies.md")

    names = {re.split(r"[^A-Za-z0-9-]", each)[0] for each in wanted} - {"givalia"}
    assert {name for name in names if f"[{name}](" not in reasons} == set()


def test_installs_that_pages_name_work_from_a_clone() -> None:
    """No index has our packages, so each is installed from its folder, with Givalia itself beside it or before."""
    told = [page for page in EVERY if page.parent.name != "decisions"]
    for page in [*told, *(ROOT / "plugins").glob("*/README.md"), ROOT / "example_modules_pkg" / "README.md"]:
        for words in re.findall(r"pip install ([^\n`]+)", text(page)):
            named_there = [word.strip("'\"").split("[")[0] for word in words.split()]
            assert not [name for name in named_there if re.match(r"givalia(-|$)", name)], f"{page}: pip install {words}"
            folders = [name for name in named_there if name.startswith("./plugins")]
            assert all((ROOT / folder / "pyproject.toml").exists() for folder in folders), f"{page}: pip install {words}"


# Two languages, one page.


def test_both_readmes_have_the_same_sections_and_the_same_code() -> None:
    assert [depth for depth, _ in headings(README_JA)] == [depth for depth, _ in headings(README)]
    code = [[(block.language, block.info, block.code) for block in blocks(page)] for page in (README, README_JA)]
    assert code[0] == code[1]
    assert [target for _, target in links(README_JA) if target != "README.md"] == [
        target for _, target in links(README) if target != "README.ja.md"
    ]


@pytest.mark.parametrize("page", EVERY, ids=named)
def test_no_page_promises_exactly_once_delivery(page: Path) -> None:
    # Effects can be made to happen once, by whoever has them; delivery is at least once (docs/delivery.md).
    assert not re.search(r"exactly.once\s+delivery", text(page), re.IGNORECASE)


def test_everything_that_explain_says_is_documented() -> None:
    page = " ".join(section(DOCS / "lifecycle.md", "What `explain` says").split())
    said = [each for module in (why, words_room) for each in _said_in(Path(module.__file__))]

    assert len(said) > 30
    assert [each for each in said if each not in page] == []


def _said_in(file: Path) -> Iterator[str]:
    """The texts in the code that says why a job has not run, without what stands in their braces."""
    yield from (words_room.HOLDS, *words_room._DEAD_WORDS.values())
    for top in ast.parse(file.read_text()).body:
        if isinstance(top, ast.FunctionDef) and (file.name == "why.py" or top.name.startswith(("_why", "_held"))):
            parts = [part for part in top.body if not isinstance(part, ast.Expr)]  # Not the docstring.
            found = [node.value for part in parts for node in ast.walk(part) if isinstance(node, ast.Constant)]
            yield from (each.strip(" ;,:") for each in found if isinstance(each, str) and len(each) > 8)
