"""Version specifiers of jobs, such as `>=2,<3`: which versions of the module's distribution may run the job.

A specifier is checked and normalized at the boundary, so that equal requirements share one route. Both functions cache their
results.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

SPECIFIER_CHARS_MAX: Final = 100

_PRINTABLE: Final = re.compile(r"[ -~]*", re.ASCII).fullmatch  # Packaging allows any text after `===`.


def is_specifier(value: Any) -> bool:
    """Return whether the value is a specifier that packaging understands, within the limit of characters."""
    if type(value) is not str or len(value) > SPECIFIER_CHARS_MAX:
        return False
    try:
        canonical(value)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=1_000)
def canonical(text: str) -> str | None:
    """Return the specifier in its canonical form, without blanks; None if it allows every version.

    Raises:
        ValueError: The text is not a specifier.
    """
    if not _PRINTABLE(text):
        raise ValueError("a specifier is made of printable ASCII")
    return str(SpecifierSet(text)) or None


@lru_cache(maxsize=10_000)
def satisfies(version: str, specifier: str) -> bool:
    """Return whether the version satisfies the specifier; a text that is not a version satisfies none.

    A pre-release counts by its place in the order of versions: 2.0rc1 satisfies `>=1.9` and `>=2.0rc1`, not `>=2`. A worker
    has a pre-release only if somebody installed it on purpose.
    """
    try:
        return SpecifierSet(specifier).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False
