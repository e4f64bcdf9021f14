"""Version specifiers of jobs: one form for equal meanings, and the versions that satisfy them."""

from __future__ import annotations

import pytest

from givalia_core.specifiers import SPECIFIER_CHARS_MAX, canonical, is_specifier, satisfies


@pytest.mark.parametrize(
    ("text", "expected"),
    [(">=2", ">=2"), (" >= 2 ", ">=2"), (">=2, <3", "<3,>=2"), ("<3,>=2", "<3,>=2"), ("", None), (" ", None)],
)
def test_what_means_the_same_has_one_form(text: str, expected: str | None) -> None:
    assert canonical(text) == expected
    assert is_specifier(text)


@pytest.mark.parametrize(
    "value",
    ["2", ">=", "two", ">=2;", "===\x00", "===\ud800", "===é", ">=2\n", ">=" + "1" * SPECIFIER_CHARS_MAX, 2, None, b">=2"],
)
def test_what_is_no_specifier_is_told_from_one(value: object) -> None:
    assert not is_specifier(value)


@pytest.mark.parametrize("text", ["===odd", "==1!2.3.post4.dev5+local.6,~=1.0,!=2.*"])
def test_no_form_has_a_blank(text: str) -> None:
    assert " " not in (canonical(text) or "")


@pytest.mark.parametrize(
    ("version", "specifier", "expected"),
    [
        ("2.0", ">=2", True), ("1.4", ">=2", False), ("1.4.2", "==1.4.*", True), ("1.4+local", "==1.4", True),
        ("2.0rc1", ">=2", False), ("2.0rc1", ">=2.0rc1", True), ("2.0rc1", ">=1.9", True), ("2.0.dev1", "<2", False),
        ("", ">=0", False), ("tuesday", ">=0", False), ("tuesday", "===tuesday", False),
    ],
)  # fmt: skip
def test_a_version_satisfies_what_asks_for_it(version: str, specifier: str, expected: bool) -> None:
    assert satisfies(version, specifier) is expected
