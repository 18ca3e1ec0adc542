"""The host's own apt sources, read for one purpose: where a suite can be fetched from, checked by which key.

One-line (`*.list`) and deb822 (`*.sources`) forms. Host files are the administrator's, but may be odd: what
can't be read is skipped, never guessed at.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

from knarr.model.errors import Unsupported

_ONE_LINE = re.compile(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)((?:\s+[^\s#]+)*)", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]*", re.ASCII)
_USERINFO = re.compile(r"//[^/@]*@")


@dataclass(frozen=True, slots=True)
class Source:
    """One suite of one mirror."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""
    """a keyring's path; empty = apt's trusted ones"""

    def line(self) -> str:
        option = f"[signed-by={self.signed_by}] " if self.signed_by else ""
        return f"deb {option}{self.uri} {self.suite} {' '.join(self.components)}"


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a distribution's images say about their own package sources."""

    name: str
    keyring: str
    keyring_package: str
    components: tuple[str, ...]
    marks: tuple[str, ...]
    """a mirror's URI ends in, or holds, one of these path words"""
    suites: dict[str, str]
    """other names of suites"""


DISTRIBUTIONS = {
    "debian": Distribution(
        name="debian",
        keyring="/usr/share/keyrings/debian-archive-keyring.gpg",
        keyring_package="debian-archive-keyring",
        components=("main",),
        marks=("debian",),
        suites={"latest": "stable", "11": "bullseye", "12": "bookworm", "13": "trixie", "14": "forky"},
    ),
    "ubuntu": Distribution(
        name="ubuntu",
        keyring="/usr/share/keyrings/ubuntu-archive-keyring.gpg",
        keyring_package="ubuntu-keyring",
        components=("main", "restricted", "universe", "multiverse"),
        marks=("ubuntu",),
        suites={"latest": "noble", "20.04": "focal", "22.04": "jammy", "24.04": "noble", "26.04": "resolute"},
    ),
}


def read_sources(folder: str = "/etc/apt") -> tuple[Source, ...]:
    """Every enabled binary source, in apt's order."""
    found: list[Source] = list(_parse_file(f"{folder}/sources.list"))
    parts = f"{folder}/sources.list.d"
    try:
        names = sorted(os.listdir(parts))
    except OSError:
        names = []
    for name in names:
        found += _parse_file(f"{parts}/{name}")
    return tuple(found)


def _parse_file(path: str) -> tuple[Source, ...]:
    if not path.endswith((".list", ".sources")):
        return ()
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 20)
    except OSError:
        return ()
    return parse_deb822(text) if path.endswith(".sources") else parse_one_line(text)


def parse_one_line(text: str) -> tuple[Source, ...]:
    found = []
    for line in text.splitlines():
        match = _ONE_LINE.match(line.strip())
        if match is None:
            continue
        options = dict(pair.split("=", 1) for pair in (match[1] or "").split() if "=" in pair)
        key = options.get("signed-by", "")
        found.append(Source(match[2], match[3], tuple(match[4].split()), key if key.startswith("/") else ""))
    return tuple(found)


def parse_deb822(text: str) -> tuple[Source, ...]:
    found: list[Source] = []
    for paragraph in re.split(r"\n[ \t]*\n", _without_comments(text)):
        fields = _fields(paragraph)
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in (
            "no",
            "false",
        ):
            continue
        key = fields.get("signed-by", "")
        components = tuple(fields.get("components", "").split())
        found += (
            # a key written into the file itself is not a path: apt's trusted keys must do
            Source(uri, suite, components, key if key.startswith("/") and " " not in key else "")
            for uri in fields.get("uris", "").split()
            for suite in fields.get("suites", "").split()
        )
    return tuple(found)


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def _fields(paragraph: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    key = ""
    for line in paragraph.splitlines():
        if line[:1] in (" ", "\t"):
            fields[key] = f"{fields.get(key, '')} {line.strip()}".strip()
            continue
        key, _, value = line.partition(":")
        key = key.strip().lower()
        fields[key] = value.strip()
    return fields


def for_suite(distribution: Distribution, suite: str, sources: tuple[Source, ...]) -> tuple[Source, ...]:
    """The suite with updates and security: from the host's sources, else by analogy.

    Raises `Unsupported` if the host has no source of the distribution, or no keyring to check packages with.
    """
    usable = tuple(source for source in sources if _is_of(distribution, source))
    wanted = (suite, f"{suite}-updates", f"{suite}-security", f"{suite}/updates")
    exact = tuple(source for source in usable if source.suite in wanted)
    if any(source.suite == suite for source in exact):
        return tuple(_with_key(distribution, source) for source in exact)
    main = _mirror(distribution, usable, security=False)
    if main is None:
        raise Unsupported(
            f"this host has no package source of {distribution.name}",
            hint="add one to /etc/apt/sources.list.d, with its signed-by key",
        )
    chosen = [replace(main, suite=suite)]
    if suite not in ("sid", "unstable", "experimental"):
        chosen.append(replace(main, suite=f"{suite}-updates"))
        security = _mirror(distribution, usable, security=True)
        if security is not None:
            chosen.append(replace(security, suite=f"{suite}-security"))
    return tuple(_with_key(distribution, source) for source in chosen)


def _is_of(distribution: Distribution, source: Source) -> bool:
    plain = all(_WORD.fullmatch(word) for word in (source.suite, *source.components))
    words = re.split(r"[/.:-]+", source.uri.lower())
    signed = f"{distribution.name}-" in source.signed_by
    return plain and bool(source.components) and (signed or any(mark in words for mark in distribution.marks))


def _mirror(distribution: Distribution, usable: tuple[Source, ...], *, security: bool) -> Source | None:
    for source in usable:
        if source.suite.endswith(("-security", "/updates")) == security and "backports" not in source.suite:
            return replace(source, components=distribution.components)
    return None


def _with_key(distribution: Distribution, source: Source) -> Source:
    key = source.signed_by or distribution.keyring
    if not os.path.exists(key):
        raise Unsupported(
            f"this host has no keys to check packages of {distribution.name} with",
            hint=f"apt install {distribution.keyring_package}",
        )
    return replace(source, signed_by=key)


def image_sources(distribution: Distribution, chosen: tuple[Source, ...], suite: str) -> str:
    """The deb822 file for inside the image: where it was made from, without credentials and host keys."""
    components = next(
        (source.components for source in chosen if source.suite == suite), distribution.components
    )
    groups: dict[str, list[str]] = {}
    for source in chosen:
        groups.setdefault(_USERINFO.sub("//", source.uri, count=1), []).append(source.suite)
    return "\n".join(
        f"Types: deb\nURIs: {uri}\nSuites: {' '.join(dict.fromkeys(suites))}\n"
        f"Components: {' '.join(components)}\nSigned-By: {distribution.keyring}\n"
        for uri, suites in groups.items()
    )
