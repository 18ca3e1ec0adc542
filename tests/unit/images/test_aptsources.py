"""Reading the host's apt sources, and choosing from them."""

from __future__ import annotations

import pytest

from knarr.images import aptsources
from knarr.images.aptsources import (
    DISTRIBUTIONS,
    Source,
    for_suite,
    image_sources,
    parse_deb822,
    parse_one_line,
    read_sources,
)
from knarr.images.bootstrap import bootstrap
from knarr.model.errors import Invalid, Unsupported

DEBIAN = DISTRIBUTIONS["debian"]

ONE_LINE = """
# deb http://old.example/debian bookworm main
deb http://mirror.example/debian bookworm main contrib # ours
deb-src http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] https://mirror.example/debian-security bookworm-security main
deb http://flat.example/repo ./
nonsense
"""

DEB822 = """Types: deb deb-src
URIs: http://mirror.example/debian
# a comment
Suites: bookworm bookworm-updates
Components: main
 contrib
Signed-By: /k.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://inline.example/debian
Suites: sid
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
"""


def test_the_one_line_form():
    assert parse_one_line(ONE_LINE)[:2] == (
        Source("http://mirror.example/debian", "bookworm", ("main", "contrib")),
        Source("https://mirror.example/debian-security", "bookworm-security", ("main",), "/k.gpg"),
    )


def test_the_deb822_form():
    assert parse_deb822(DEB822) == (
        Source("http://mirror.example/debian", "bookworm", ("main", "contrib"), "/k.gpg"),
        Source("http://mirror.example/debian", "bookworm-updates", ("main", "contrib"), "/k.gpg"),
        Source("http://inline.example/debian", "sid", ("main",)),
    )


def test_both_forms_are_read_from_their_places(tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://a/debian x main")
    (tmp_path / "sources.list.d" / "b.sources").write_text(DEB822)
    (tmp_path / "sources.list.d" / "c.list.disabled").write_text("deb http://c/debian x main")
    assert [source.suite for source in read_sources(str(tmp_path))] == [
        "x",
        "bookworm",
        "bookworm-updates",
        "sid",
    ]
    assert read_sources(str(tmp_path / "nothing")) == ()


@pytest.fixture
def key(tmp_path, monkeypatch):
    path = tmp_path / "debian-archive-keyring.gpg"
    path.write_bytes(b"")
    monkeypatch.setitem(aptsources.DISTRIBUTIONS, "debian", DEBIAN)
    return str(path)


def test_the_host_s_own_entries_are_taken_for_its_own_suite(key):
    mirror = "http://mirror.example/debian"
    sources = (
        Source(mirror, "bookworm", ("main", "contrib"), key),
        Source(mirror, "bookworm-backports", ("main",), key),
        Source(mirror + "-security", "bookworm-security", ("main",), key),
        Source("http://other.example/nodesource", "bookworm", ("main",)),
        Source(mirror, "$(reboot)", ("main",), key),
    )
    chosen = for_suite(DEBIAN, "bookworm", sources)
    assert [source.suite for source in chosen] == ["bookworm", "bookworm-security"]
    assert chosen[0].line() == f"deb [signed-by={key}] {mirror} bookworm main contrib"


def test_another_suite_comes_from_the_same_mirror(key):
    mirror = "http://mirror.example/debian"
    sources = (
        Source(mirror, "bookworm", ("main",), key),
        Source(mirror + "-security", "bookworm-security", ("main",), key),
    )
    chosen = for_suite(DEBIAN, "trixie", sources)
    assert [(source.uri, source.suite) for source in chosen] == [
        (mirror, "trixie"),
        (mirror, "trixie-updates"),
        (mirror + "-security", "trixie-security"),
    ]
    assert [source.suite for source in for_suite(DEBIAN, "sid", sources)] == ["sid"]


def test_the_image_knows_its_mirror_but_no_credentials(key):
    chosen = (
        Source("https://me:secret@mirror.example/debian", "bookworm", ("main",), key),
        Source("https://mirror.example/debian-security", "bookworm-security", ("main",), key),
    )
    text = image_sources(DEBIAN, chosen, "bookworm")
    assert "secret" not in text
    assert key not in text
    assert [(source.uri, source.suite) for source in parse_deb822(text)] == [
        ("https://mirror.example/debian", "bookworm"),
        ("https://mirror.example/debian-security", "bookworm-security"),
    ]


def test_a_host_without_a_source_says_so():
    with pytest.raises(Unsupported, match="no package source of debian"):
        for_suite(DEBIAN, "bookworm", ())


def test_no_keys_no_image():
    with pytest.raises(Unsupported, match="no keys") as caught:
        for_suite(
            DEBIAN, "bookworm", (Source("http://m/debian", "bookworm", ("main",), "/nothing/here.gpg"),)
        )
    assert caught.value.hint == "apt install debian-archive-keyring"


@pytest.mark.parametrize(
    ("name", "include", "error"),
    [
        ("fedora:40", (), Unsupported),
        ("debian:Book worm", (), Invalid),
        ("debian:--help", (), Invalid),
        ("debian:bookworm", ("--x",), Invalid),
        ("debian:bookworm", ("a b",), Invalid),
        ("debian:bookworm", ("./x.deb",), Invalid),
        ("debian:bookworm", ("?narrow(x)",), Invalid),
    ],
)
def test_orders_that_are_refused(tmp_path, name, include, error):
    with pytest.raises(error) as caught, bootstrap(name, include, str(tmp_path)):
        pass
    assert caught.value.hint
