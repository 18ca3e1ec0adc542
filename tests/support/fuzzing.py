"""How the fuzz tests run: one seed, few examples in CI, many with KNARR_FULL=1."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from support.tarforge import summed

if TYPE_CHECKING:
    from collections.abc import Callable

SEED = int(os.environ.get("KNARR_SEED") or random.SystemRandom().randrange(1 << 32))
_MORE = 40 if os.environ.get("KNARR_FULL") == "1" else 1


def fuzzed(*strategies: st.SearchStrategy[Any], examples: int = 200) -> Callable[[Any], Any]:
    """`given`, with the run's seed and so many examples (40 times as many in full)."""

    def wrap(test: Any) -> Any:
        some = settings(
            max_examples=examples * _MORE,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        )
        return seed(SEED)(some(given(*strategies)(test)))

    return wrap


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False)
    | st.text(st.characters(), max_size=12)
    | st.sampled_from(["", "a", "/", "..", "0", "-1", "\0", "\ud800", "a\nb", "sha256:" + "0" * 64]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """These bytes with some flipped, cut, doubled or taken out."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        length = draw(st.integers(0, 16))
        how = draw(st.integers(0, 4))
        if how == 0 and found:
            found[at] = draw(st.integers(0, 255))
        elif how == 1:
            found[at : at + length] = draw(st.binary(max_size=16))
        elif how == 2:
            del found[at : at + length]
        elif how == 3:
            found[at:at] = found[at : at + 512]
        else:
            del found[max(1, at) :]
    return bytes(found)


@st.composite
def damaged_tars(draw: st.DrawFn, tars: list[bytes]) -> bytes:
    """A tar of the corpus, damaged, its headers' checksums right again more often than not."""
    data = bytearray(draw(damaged(draw(st.sampled_from(tars)))))
    if draw(st.integers(0, 3)):
        for at in range(0, len(data) - 511, 512):
            block = data[at : at + 512]
            if block[257:262] == b"ustar" or draw(st.integers(0, 15)) == 0:
                data[at : at + 512] = summed(block)
    return bytes(data)
