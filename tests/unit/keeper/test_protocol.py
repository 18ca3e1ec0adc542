"""Packets: words, JSON with odd bytes, descriptors by name."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.keeper import protocol, roles
from knarr.kernel import fds as descriptors

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(st.lists(TEXT, min_size=1))
def test_words_come_back(words):
    assert protocol.decode_words(protocol.encode_words(tuple(words))) == words


@given(st.binary(max_size=40))
def test_names_that_are_no_utf8_come_back(raw):
    name = os.fsdecode(raw)
    assert protocol.decode(protocol.encode({"name": name})) == {"name": name}


@given(st.binary(max_size=40))
def test_garbage_is_refused(data):
    try:
        assert isinstance(protocol.decode(data), dict)
    except ValueError:
        pass


def test_large_packets_and_descriptors_pass():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        protocol.widen(ours)
        protocol.widen(theirs)
        descriptors.send_fds(ours, b"x" * 1_000_000, (0,))
        data, fds = protocol.receive(theirs)
        assert len(data) == 1_000_000
        assert protocol.take_named(["a"], fds) == {"a": fds[0]}
        os.close(fds[0])
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            protocol.receive(theirs)
        ours.close()
        assert protocol.receive(theirs) == (b"", [])


def test_names_and_descriptors_must_match():
    r, w = os.pipe()
    with pytest.raises(ValueError, match="1 names for 2"):
        protocol.take_named(["a"], [r, w])
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(r)


def test_roles_are_isolated():
    line = roles.argv("knarr.keeper.main", "/r", "/u")
    assert line[1:3] == ("-IS", "-c")
    assert line[-2:] == ("/r", "/u")
    assert "site-packages" not in line[3]
    assert os.path.isdir(os.path.join(roles.site_packages(), "aiohttp"))
