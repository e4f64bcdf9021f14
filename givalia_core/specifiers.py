"""What a job may ask of the version of its module's distribution: specifiers as packaging has them, such as `>=2,<3`.

A specifier is checked and brought into one form at the boundary, so that jobs that ask for the same are found together. Both
functions keep what they found for texts that come again and again.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

SPECIFIER_CHARS_MAX: Final = 100

_PRINTABLE: Final = re.compile(r"[ -~]*", re.ASCII).fullmatch  # Packaging lets anything stand behind `===`.


def is_specifier(value: Any) -> bool:
    """A specifier of at most so many characters that packaging understands."""
    if type(value) is not str or len(value) > SPECIFIER_CHARS_MAX:
        return False
    try:
        canonical(value)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=1_000)
def canonical(text: str) -> str | None:
    """The same specifier in its one form, without blanks; None for one that asks for nothing.

    Raises:
        ValueError: It is none.
    """
    if not _PRINTABLE(text):
        raise ValueError("a specifier is made of printable ASCII")
    return str(SpecifierSet(text)) or None


@lru_cache(maxsize=10_000)
def satisfies(version: str, specifier: str) -> bool:
    """Whether this version of a distribution is one that the specifier asks for; what is no version never is.

    A pre-release counts by its place in the order of versions: 2.0rc1 satisfies `>=1.9` and `>=2.0rc1`, not `>=2`. Whoever
    runs a worker with one installed it on purpose.
    """
    try:
        return SpecifierSet(specifier).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False
