"""`givalia enq --wait` and modules that no worker serves: the output for people and programs when there is no result."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from scripted_server import Line, ScriptedServer, serve
from test_nonsense import STATUS, say

from givalia_core.cli import main, unknown, waiting
from givalia_core.errors import JobFailed, WaitTimeout
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import OK, Kind

NOTED = "Traceback (most recent call last):\n  File x\nValueError: no such cart\nA note.\x1b[2J"
READY = {**STATUS, "module": "Smaple", "state": "ready", "why": "due, but no worker has module Smaple", "timeleft_us": 0}


class Waits:
    """A server whose jobs do not end, or end as it is told."""

    def __init__(self, *end: Any) -> None:
        self.answers = {
            Kind.STAT: say(OK, READY),
            Kind.MODULES: say(
                OK, payload=msgpack.packb([{"module": "Sample", "broken": None}, {"module": "Mail", "broken": "x"}])
            ),
            Kind.WAIT: say(*end) if end else lambda line, ask: None,
        }

    def __call__(self, line: Line, ask: Asked) -> None:
        self.answers.get(ask.kind, serve)(line, ask)


Ran = Callable[..., tuple[BaseException | None, str, str]]


@pytest.fixture
def ran(scripted: Callable[..., ScriptedServer], capsys: pytest.CaptureFixture[str]) -> Ran:
    def run(script: Any, *words: str) -> tuple[BaseException | None, str, str]:
        raised = None
        try:
            main._main(["-m", scripted(script).address, *words])
        except Exception as error:
            raised = error
        return raised, *capsys.readouterr()

    return run


def test_a_wait_that_is_given_up_names_the_job_and_says_why(ran: Ran) -> None:
    error, out, _ = ran(Waits(), "enq", "Smaple", "--key", "cart-7", "--wait-timeout", "0.1")

    assert type(error) is WaitTimeout
    assert out == ""
    assert ", key cart-7: ready: due, but no worker has module Smaple; did you mean Sample?)" in str(error)


def test_programs_are_told_it_too(ran: Ran) -> None:
    error, out, _ = ran(Waits(), "enq", "Smaple", "--key", "cart-7", "--wait-timeout", "0.1", "--json")

    told = json.loads(out)
    assert type(error) is WaitTimeout
    assert told["id"] in str(error)
    assert (told["key"], told["code"], told["state"]) == ("cart-7", "WAIT_TIMEOUT", "ready")
    assert told["why"] == "due, but no worker has module Smaple; did you mean Sample?"


def test_a_job_that_failed_is_told_by_its_headline_and_the_rest_on_demand(ran: Ran) -> None:
    error, out, err = ran(Waits(OK, "dead", "exhausted", NOTED), "enq", "Sample", "--wait", "--json")
    _, _, whole = ran(Waits(OK, "dead", "exhausted", NOTED), "enq", "Sample", "--wait", "--traceback")

    assert type(error) is JobFailed
    assert str(error) == "the job is dead (exhausted): ValueError: no such cart"
    assert (json.loads(out)["code"], json.loads(out)["error"], err) == ("JOB_FAILED", NOTED, "")
    assert whole == NOTED.replace("\x1b", "\\x1b") + "\n"


def test_explain_shows_the_whole_error_on_demand(ran: Ran) -> None:
    script = Waits()
    script.answers[Kind.STAT] = say(OK, {**STATUS, "state": "dead", "error": NOTED, "why": "its last attempt failed"})

    assert ran(script, "explain", "k")[1] == "dead: its last attempt failed\n"
    _, out, _ = ran(script, "explain", "k", "--traceback")
    assert out == "dead: its last attempt failed\n" + NOTED.replace("\x1b", "\\x1b") + "\n"
    assert json.loads(ran(script, "explain", "k", "--traceback", "--json")[1])["error"] == NOTED


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("Sample", ""),
        ("Smaple", "givalia: warning: no worker serves Smaple, so its jobs wait; did you mean Sample?\n"),
        ("Mail", "givalia: warning: no worker serves Mail, so its jobs wait\n"),
    ],
)
def test_people_are_warned_of_a_module_that_nobody_serves_and_the_job_is_taken(
    ran: Ran, monkeypatch: pytest.MonkeyPatch, module: str, words: str
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())

    error, out, _ = ran(Waits(), "enq", module)

    assert (error, out.count("due")) == (None, 1)
    assert terminal.getvalue() == words


def test_programs_are_not_warned(ran: Ran) -> None:
    assert ran(Waits(), "enq", "Smaple")[2] == ""


@pytest.mark.parametrize(
    ("name", "hint"),
    [("sample", "did you mean Sample?"), ("SendMial", "did you mean SendMail?"), ("Other", ""), ("", "")],
)
def test_what_may_be_meant_is_like_what_was_said(name: str, hint: str) -> None:
    assert unknown.did_you_mean(name, {"Sample", "SendMail"}) == hint


def test_who_waits_long_is_told_why_and_at_growing_intervals(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "TELL_S", 0.05)

    error, _, err = ran(Waits(), "enq", "Smaple", "--wait-timeout", "0.3")

    assert type(error) is WaitTimeout
    why = "ready: due, but no worker has module Smaple; did you mean Sample?"
    assert [line.partition(": ")[2] for line in err.splitlines()] == [why] * 3  # At 0.05, 0.1 and 0.2 s.


def test_who_waits_less_long_is_told_nothing(ran: Ran) -> None:
    assert ran(serve, "enq", "Sample", "--wait") == (None, "7\n", "")


class Lost(Waits):
    """A server that is gone when somebody asks for more than the job itself."""

    def __init__(self, *kinds: Kind) -> None:
        super().__init__()
        for kind in kinds:
            self.answers[kind] = lambda line, ask: None


def test_a_server_that_says_nothing_more_neither_holds_up_the_end_nor_changes_what_is_said_of_the_job(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "TELL_S", 0.05)
    monkeypatch.setattr(waiting, "WHY_S", 0.1)
    began_s = time.monotonic()

    error, out, err = ran(Lost(Kind.STAT), "--patience", "30", "enq", "Smaple", "--wait-timeout", "0.3", "--json")

    assert time.monotonic() - began_s < 5
    assert type(error) is WaitTimeout
    assert str(error).endswith("no server says why it has not ended)")
    assert json.loads(out)["code"] == "WAIT_TIMEOUT"
    assert "no server says why it has not ended" in err


@pytest.mark.parametrize(
    ("words", "patience_s"),
    [((), 5), (("--wait",), 60), (("--wait-timeout", "1"), 60), (("--wait", "--patience", "3"), 3)],
)
def test_who_waits_has_more_patience(
    ran: Ran, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], patience_s: float
) -> None:
    asked: list[float] = []
    found_by = main.found_by
    monkeypatch.setattr(main, "found_by", lambda kind, find, s: (asked.append(s), found_by(kind, find, s))[1])
    mine = [word for word in words if word in ("--patience", "3")]

    ran(serve, *mine, "enq", "Sample", *(word for word in words if word not in mine))

    assert asked == [patience_s]


class Gone(io.StringIO):
    """A standard error whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_wait_whose_words_nobody_reads_goes_on(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "TELL_S", 0.05)
    monkeypatch.setattr(sys, "stderr", Gone())

    error, _, _ = ran(Waits(), "enq", "Smaple", "--wait-timeout", "0.3")

    assert type(error) is WaitTimeout
