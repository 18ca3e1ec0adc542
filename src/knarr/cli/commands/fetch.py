"""`pull load import bootstrap`: four ways to get an image, all with the same progress."""

from __future__ import annotations

import os
import sys

from knarr.cli import progress
from knarr.cli.context import Context, say
from knarr.cli.options import Arguments, Command, Option
from knarr.model.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

_PIECE = 256 * 1024
QUIET = Option("-q --quiet", "no progress, only the id")


def _finish(lines: Iterable[dict[str, Any]], a: Arguments) -> int:
    image = progress.show(lines, quiet=a.quiet)
    names = image.get("references") or ()
    say(image.get("id", "") if a.quiet or not names else "\n".join(str(name) for name in names))
    return 0


def pull(context: Context, a: Arguments) -> int:
    username, password = _credentials(a)
    lines = context.client.pull(
        a.operands[0],
        platform=a.platform,
        insecure=a.insecure_registry,
        username=username,
        password=password,
    )
    return _finish(lines, a)


def push(context: Context, a: Arguments) -> int:
    username, password = _credentials(a)
    found: dict[str, Any] = {}

    def lines() -> Iterator[dict[str, Any]]:
        for line in context.client.push(
            a.operands[0], insecure=a.insecure_registry, username=username, password=password
        ):
            if "ready" in line:
                found.update(line)
            else:
                yield line

    progress.show(lines(), quiet=a.quiet)
    say(f"{found['reference']}@{found['digest']}")
    return 0


def _credentials(a: Arguments) -> tuple[str | None, str | None]:
    """A password never comes from the command line, where every user of the host could read it."""
    if not a.password_stdin:
        if a.username:
            raise Invalid("--username needs --password-stdin", hint="or log in with docker's config.json")
        return None, None
    if not a.username:
        raise Invalid("--password-stdin needs --username")
    return a.username, sys.stdin.readline().rstrip("\r\n")


def pieces(path: str) -> Iterator[bytes]:
    """A file's bytes, or standard input's for `-`."""
    fd = 0 if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while data := os.read(fd, _PIECE):
            yield data
    finally:
        if fd:
            os.close(fd)


def _input(path: str) -> str:
    """Checked before a request is begun."""
    if path == "-":
        if os.isatty(0):
            raise Invalid("standard input is a terminal", hint="-i FILE, or redirect an archive into it")
    elif not os.access(path, os.R_OK) or os.path.isdir(path):
        raise Invalid(f"{path}: no readable file", hint="an archive: plain tar, gzip or zstd")
    return path


def load(context: Context, a: Arguments) -> int:
    return _finish(context.client.load(pieces(_input(a.input or "-"))), a)


def import_image(context: Context, a: Arguments) -> int:
    reference = a.operands[1] if len(a.operands) > 1 else None
    return _finish(context.client.import_image(pieces(_input(a.operands[0])), reference), a)


def bootstrap(context: Context, a: Arguments) -> int:
    include = [name for text in a.include for name in text.split(",") if name]
    return _finish(context.client.bootstrap(a.operands[0], include=include, reference=a.tag), a)


PULL = Command(
    pull,
    "fetch an image from a registry",
    "IMAGE",
    (
        Option("--platform", "platform, such as linux/amd64", value="PLATFORM"),
        Option("--insecure-registry", "allow plain HTTP and unknown certificates"),
        Option("-u --username", "user at the registry", value="NAME"),
        Option("--password-stdin", "read the password from standard input"),
        QUIET,
    ),
    complete="image",
    notes="Credentials are taken from docker's config.json where there are any.",
)
PUSH = Command(
    push,
    "send an image to the registry that its name says",
    "IMAGE",
    (
        Option("--insecure-registry", "allow plain HTTP and unknown certificates"),
        Option("-u --username", "user at the registry", value="NAME"),
        Option("--password-stdin", "read the password from standard input"),
        QUIET,
    ),
    complete="image",
    notes="Layers go as they were pulled; what the registry has is not sent. knarr tag gives a name.",
)
LOAD = Command(
    load,
    "take in images from a docker-save or OCI archive",
    "",
    (Option("-i --input", "archive (standard input)", value="FILE", complete="file"), QUIET),
)
IMPORT = Command(
    import_image,
    "make an image of a tar of a root file system",
    "FILE|- [NAME]",
    (QUIET,),
    complete="file",
)
BOOTSTRAP = Command(
    bootstrap,
    "make a base image from a distribution's packages",
    "DISTRIBUTION:RELEASE",
    (
        Option("--include", "packages to add", value="PACKAGE[,PACKAGE...]", many=True),
        Option("-t --tag", "name of the image (DISTRIBUTION:RELEASE)", value="NAME"),
        QUIET,
    ),
    notes="Needs mmdebstrap and a mirror in the host's apt sources: knarr image bootstrap debian:bookworm",
)
