"""Detach keys: found wherever reads are cut, and never swallowing what is not them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.cli import progress, terminal
from knarr.model.errors import Invalid


def test_key_names() -> None:
    assert terminal.parse_keys("ctrl-p,ctrl-q") == b"\x10\x11"
    assert terminal.parse_keys("a,ctrl-[") == b"a\x1b"
    for text in ("ctrl-", "ctrl-1", "ab", "meta-x", ""):
        with pytest.raises(Invalid):
            terminal.parse_keys(text)


@given(st.lists(st.binary(max_size=5), max_size=8))
def test_only_the_sequence_is_held_back(pieces: list[bytes]) -> None:
    keys = terminal.DetachKeys(b"\x10\x11")
    typed = b"".join(pieces)
    passed = b""
    for piece in pieces:
        passed += keys.feed(piece)
        if keys.detached:
            break
    if keys.detached:
        assert passed == typed[: typed.index(b"\x10\x11")]
    else:
        assert b"\x10\x11" not in typed
        assert typed.startswith(passed)
        assert len(typed) - len(passed) <= 1


def test_progress_lines() -> None:
    line = {"item": "sha256:" + "ab" * 32, "phase": "download", "done": 50, "total": 100}
    text = progress.bar_line(line["item"], line)
    assert text.startswith("abababababab")
    assert "50B / 100B" in text
    assert "%" not in text
    assert progress.bar_line("x", {"phase": "resolve"}).split() == ["x", "resolve"]
