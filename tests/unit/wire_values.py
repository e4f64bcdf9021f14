"""A strategy for any value of params and results, for tests over all of them."""

from __future__ import annotations

from hypothesis import strategies as st

KEYS = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary()
LEAVES = KEYS | st.sampled_from(["\x1b[2J", "\u202e", "é鍵😀", "a\nb", b"\xff"])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
