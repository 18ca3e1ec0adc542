"""Names: image references and digests, platforms, workloads' names and ids.

Standard library only, few imports: the command line loads this. Grammar and defaults of references are
the distribution specification's and docker's. Whether a name exists is not this module's business.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass, replace

from knarr.model.errors import Invalid, Unsupported

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
_MAX_NAME = 255

_HOST_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = rf"(?:{_HOST_PART}(?:\.{_HOST_PART})*|\[[a-fA-F0-9:]+\])"
_REGISTRY = re.compile(rf"{_HOST}(?::[0-9]+)?", re.ASCII)
_PATH_PART = r"[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PATH_PART}(?:/{_PATH_PART})*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"([a-z0-9]+(?:[+._-][a-z0-9]+)*):([0-9a-f]+)", re.ASCII)
_HEX_LENGTH = {"sha256": 64, "sha384": 96, "sha512": 128}
_ID = re.compile(r"[a-f0-9]{64}", re.ASCII)
_WORKLOAD = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", re.ASCII)
_PLATFORM_PART = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an image is: registry, repository, and a tag, a digest or both (then the digest decides)."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def canonical(self) -> str:
        """The full form: `docker.io/library/debian:bookworm`."""
        return f"{self.registry}/{self.repository}{self._suffix}"

    @property
    def familiar(self) -> str:
        """The form that people type: `debian:bookworm`."""
        return f"{self.familiar_name}{self._suffix}"

    @property
    def familiar_name(self) -> str:
        """Without tag and digest: `debian`."""
        if self.registry != DEFAULT_REGISTRY:
            return f"{self.registry}/{self.repository}"
        head, _, tail = self.repository.partition("/")
        return tail if head == "library" and "/" not in tail else self.repository

    @property
    def target(self) -> str:
        """What a registry is asked for: the digest if there is one, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def with_tag(self, tag: str) -> Reference:
        return replace(self, tag=tag, digest=None)

    def __str__(self) -> str:
        return self.familiar


def parse_reference(text: str) -> Reference:
    """A reference in docker's grammar with docker's defaults. Raises `Invalid`."""
    if _ID.fullmatch(text):
        raise Invalid(
            f"image reference {text!r} is an id, not a name",
            hint="a repository can't be named by 64 hex digits",
        )
    rest, at, digest = text.partition("@")
    if at:
        digest = check_digest(digest)
    name, tag = _split_tag(rest)
    registry, repository = _split_registry(name)
    _check_repository(text, repository)
    if not _REGISTRY.fullmatch(registry):
        raise _bad(text, f"{registry!r} is not a registry's host", "such as registry.example.org:5000")
    if len(registry) + 1 + len(repository) > _MAX_NAME:
        raise _bad(text, f"the name is longer than {_MAX_NAME} characters", "use a shorter repository name")
    if tag is not None and not _TAG.fullmatch(tag):
        raise _bad(text, f"{tag!r} is not a tag", "at most 128 of A-Z a-z 0-9 _ . - and not . or - first")
    if tag is None and not digest:
        tag = DEFAULT_TAG
    return Reference(registry, repository, tag, digest or None)


def _bad(text: str, fact: str, hint: str) -> Invalid:
    shown = text if len(text) <= _MAX_NAME else text[:_MAX_NAME] + "…"
    return Invalid(f"image reference {shown!r}: {fact}", hint=hint)


def _split_tag(text: str) -> tuple[str, str | None]:
    # a colon before the last slash belongs to the registry's port
    head, colon, tail = text.rpartition(":")
    if not colon or "/" in tail:
        return text, None
    return head, tail


def _split_registry(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    is_host = "." in first or ":" in first or first == "localhost" or first.lower() != first
    registry, repository = (first, rest) if slash and is_host else (DEFAULT_REGISTRY, name)
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"library/{repository}" if repository else repository
    return registry, repository


def _check_repository(text: str, repository: str) -> None:
    if not repository:
        raise _bad(text, "the repository is missing", "such as debian:bookworm")
    if repository.lower() != repository:
        raise _bad(text, "the repository has upper case letters", f"try {repository.lower()!r}")
    if not _REPOSITORY.fullmatch(repository):
        raise _bad(text, f"{repository!r} is not a repository", "lower case words joined by . _ __ - and /")


def check_digest(text: str) -> str:
    """`sha256:…` with as many lower case hex digits as the algorithm has. Raises `Invalid`."""
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise Invalid(f"{text[:200]!r} is not a digest", hint="such as sha256: and 64 lower case hex digits")
    length = _HEX_LENGTH.get(match[1])
    if length is None:
        raise Unsupported(f"digest algorithm {match[1]!r} is unknown", hint="sha256 or sha512")
    if len(match[2]) != length:
        raise Invalid(
            f"digest {text[:200]!r} has {len(match[2])} hex digits", hint=f"{match[1]} has {length}"
        )
    return text


def is_digest(text: str) -> bool:
    match = _DIGEST.fullmatch(text)
    return match is not None and _HEX_LENGTH.get(match[1]) == len(match[2])


@dataclass(frozen=True, slots=True)
class Platform:
    """Operating system, architecture and variant in Go's words: `linux/arm64/v8`."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def runs(self, other: Platform) -> bool:
        """An image made for `other` is meant when this platform is asked for."""
        mine, its = _normal(self), _normal(other)
        if (mine.os, mine.architecture) != (its.os, its.architecture):
            return False
        return its.variant in ("", mine.variant) or (
            mine.architecture == "arm" and its.variant < (mine.variant or "v7")
        )


_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "armhf": "arm/v7",
    "armv7l": "arm/v7",
    "armel": "arm/v6",
    "armv6l": "arm/v6",
    "mips64el": "mips64le",
    "loongarch64": "loong64",
}
_KNOWN_ARCHITECTURES = frozenset(
    {"386", "amd64", "arm", "arm64", "loong64", "mips64le", "ppc64le", "riscv64", "s390x", *_ARCHITECTURES}
)
_SYSTEMS = {"macos": "darwin"}
_KNOWN_SYSTEMS = frozenset({"linux", "windows", "freebsd", "darwin"})


def _normal(platform: Platform) -> Platform:
    system = platform.os.lower()
    mapped = _ARCHITECTURES.get(platform.architecture.lower(), platform.architecture.lower())
    architecture, _, variant = mapped.partition("/")
    variant = (platform.variant or variant).lower()
    if variant and variant[0] != "v":
        variant = f"v{variant}"
    if (architecture, variant) in (("arm64", "v8"), ("amd64", "v1")):
        variant = ""
    if architecture == "arm" and not variant:
        variant = "v7"
    return Platform(_SYSTEMS.get(system, system), architecture, variant)


def parse_platform(text: str) -> Platform:
    """`linux/amd64`, `amd64`, `linux`, `linux/arm/v7`; the rest is the host's. Raises `Invalid`."""
    parts = text.split("/")
    if not 1 <= len(parts) <= 3 or not all(_PLATFORM_PART.fullmatch(part) for part in parts):
        raise Invalid(
            f"{text[:100]!r} is not a platform", hint="os/architecture[/variant] such as linux/amd64"
        )
    host = host_platform()
    if len(parts) > 1:
        return _normal(Platform(*parts))
    word = parts[0].lower()
    if word in _KNOWN_SYSTEMS or word in _SYSTEMS:
        return _normal(Platform(word, host.architecture, host.variant))
    if word in _KNOWN_ARCHITECTURES:
        return _normal(Platform("linux", word))
    raise Invalid(f"{text[:100]!r} is no known system or architecture", hint="such as linux/amd64 or arm64")


@functools.cache
def host_platform() -> Platform:
    uname = os.uname()
    return _normal(Platform(uname.sysname.lower(), uname.machine))


def check_name(text: str) -> str:
    """A workload's name in docker's grammar. Raises `Invalid`."""
    if not _WORKLOAD.fullmatch(text) or len(text) > _MAX_NAME:
        raise Invalid(
            f"{text[:100]!r} is not a workload's name",
            hint="two or more of A-Z a-z 0-9 _ . - and a letter or digit first",
        )
    return text


def new_id() -> str:
    """64 hex digits whose first twelve (the hostname) are never all decimal."""
    while True:
        text = os.urandom(32).hex()
        if not text[:12].isdecimal():
            return text


_ADJECTIVES = """
able brave bright brisk calm civil clear clever cosy crisp daring deft eager early fair fast fine firm
fond frank fresh gentle glad golden good grand handy happy hardy honest humble jolly keen kind lively
loyal lucky merry mighty mild modest neat nimble noble patient plucky polite proud quick quiet ready
robust sharp silent silver smart smooth snug sober solid steady stout sturdy sunny swift tidy tough trim
true trusty upright vivid warm watchful wise witty worthy young zesty
"""
_NOUNS = """
anchor auk beacon bear beaver bosun bow brig captain cargo cod compass cormorant crane crow current
cutter deck dolphin eagle eider elk ferry fjord fox fulmar gannet gull halyard harbour hawk heron hull
island keel ketch knot lantern loon lynx marten mast moose narwhal navigator oar orca osprey otter owl
pilot plover port prow puffin raven reef rigging rudder sail salmon schooner seal skerry skiff sloop
sound stern stork swan tern tide tiller trout walrus wave whale wharf wolf yawl
"""


def random_name() -> str:
    """A name people can say, such as `brave_otter`; the caller tries again when it is taken."""
    number = int.from_bytes(os.urandom(8), "little")
    adjectives, nouns = _ADJECTIVES.split(), _NOUNS.split()
    return f"{adjectives[number % len(adjectives)]}_{nouns[number // 4096 % len(nouns)]}"
