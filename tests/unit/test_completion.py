"""Tab completion: the answers to a shell, called as shells call it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from scripted_server import Script, ScriptedServer
from test_nonsense import STATUS, say

from givalia_core.cli import completion
from givalia_core.protocol.messages import OK, Kind

Completions = Callable[..., set[str]]

ANSWERS: dict[Kind, Script] = {
    Kind.LIST: say(OK, payload=msgpack.packb([{**STATUS, "key": key} for key in ("cart-7", "cart-8", "call\x1b[2J", None)])),
    Kind.MODULES: say(OK, payload=msgpack.packb([{"module": "Sample"}, {"module": "Mail"}, {"module": "Sample"}])),
    Kind.WORKERS: say(OK, payload=msgpack.packb([{"name": "alpha"}])),
}


@pytest.fixture
def port(scripted: Callable[..., ScriptedServer]) -> int:
    def script(line: Any, ask: Any) -> None:
        ANSWERS[ask.kind](line, ask)

    return int(scripted(script).address.rpartition(":")[2])


@pytest.fixture
def completions(tmp_path: Path) -> Callable[..., set[str]]:
    def complete(line: str, port: int = 1) -> set[str]:
        """What the shell would offer at the end of this line."""
        program = line.split()[0]
        module = {"givalia": "main", "givalia-server": "server", "givalia-worker": "worker"}[program]
        code = f"import sys; from givalia_core.cli.{module} import main; sys.argv[0] = '{program}'; main()"
        environ = {
            **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line)),
            "COMP_TYPE": "9", "GIVALIA_PORT": str(port),
        }  # fmt: skip
        answers = tmp_path / "answers"
        done = subprocess.run(
            ["/bin/sh", "-c", 'exec "$0" -c "$1" 8>"$2" 9>/dev/null', sys.executable, code, str(answers)],
            env=environ, timeout=60, capture_output=True, check=False,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == (b"", b"")
        return {answer.strip() for answer in answers.read_text().split("\n") if answer}

    return complete


def test_verbs_and_flags_are_completed_by_all_programs(completions: Completions) -> None:
    assert completions("givalia re") == {"requeue", "resume"}
    assert completions("givalia list --st") == {"--state"}
    assert "--concurrency" in completions("givalia-worker --con")
    assert completions("givalia-server --ins") == {"--insecure"}


def test_keys_modules_and_workers_are_completed_from_the_server(completions: Completions, port: int) -> None:
    assert completions("givalia stat ca", port) == {"cart-7", "cart-8"}
    assert completions("givalia enq M", port) == {"Mail"}
    assert completions("givalia list --module ", port) == {"Mail", "Sample"}
    assert completions("givalia list --target-worker ", port) == {"alpha"}


def test_a_server_is_asked_for_keys_that_begin_so_and_that_the_verb_is_for(
    completions: Completions, scripted: Callable[..., ScriptedServer]
) -> None:
    asked: list[Any] = []

    def script(line: Any, ask: Any) -> None:
        asked.append(ask.messages[0])
        ANSWERS[ask.kind](line, ask)

    port = int(scripted(script).address.rpartition(":")[2])
    assert completions("givalia requeue ca", port) == completions("givalia stat ca", port) == {"cart-7", "cart-8"}

    assert [(each.state, each.key_prefix) for each in asked] == [("dead", "ca"), ("cancelled", "ca"), (None, "ca")]


def test_what_a_server_has_not_told_in_a_second_is_not_waited_for(
    completions: Completions, scripted: Callable[..., ScriptedServer]
) -> None:
    pages: list[Any] = []

    def endless(line: Any, ask: Any) -> None:
        pages.append(ask)
        keys = ["cart-7"] if len(pages) == 1 else []
        say(OK, 1, len(pages), payload=msgpack.packb([{**STATUS, "key": key} for key in keys]))(line, ask)

    port = int(scripted(endless).address.rpartition(":")[2])

    assert completions("givalia stat ca", port) == {"cart-7"}
    assert len(pages) > 10


def test_without_a_server_a_shell_is_told_nothing_and_soon(completions: Completions) -> None:
    assert completions("givalia stat ca") == set()


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_script_for_a_shell_names_every_program(shell: str) -> None:
    script = completion.script(shell)

    assert all(program in script for program in completion.PROGRAMS)


@pytest.mark.parametrize(("own", "shell"), [("/usr/bin/fish", "fish"), ("/bin/dash", "bash"), ("", "bash")])
def test_the_script_is_for_the_shell_of_the_user(monkeypatch: pytest.MonkeyPatch, own: str, shell: str) -> None:
    monkeypatch.setenv("SHELL", own)

    assert completion.script(None) == completion.script(shell)
