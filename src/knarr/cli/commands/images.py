"""`image ls inspect rm tag`."""

from __future__ import annotations

import time

from knarr.cli import tables
from knarr.cli.context import Context, complain, say
from knarr.cli.options import Arguments, Command, Option
from knarr.model.errors import KnarrError, NotFound
from knarr.model.units import format_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

COLUMNS = ("Repository", "Tag", "ID", "CreatedSince", "Size")


def ls(context: Context, a: Arguments) -> int:
    found = context.client.images()
    rows = [row for image in found for row in rows_of(image, full=a.no_trunc, digests=a.digests)]
    if a.operands:
        rows = [row for row in rows if wanted(row, a.operands[0])]
    if a.quiet:
        for identity in dict.fromkeys(row["ID"] for row in rows):
            say(identity)
        return 0
    columns = ("Repository", "Tag", "Digest", "ID", "CreatedSince", "Size") if a.digests else COLUMNS
    tables.show(rows, columns, a.format)
    return 0


def rows_of(image: Mapping[str, Any], *, full: bool, digests: bool = False) -> list[dict[str, str]]:
    """A row per reference, as docker lists them."""
    common = {
        "ID": image["id"] if full else tables.short(image["id"], full=False),
        "Digest": image.get("digest", "") if digests else "",
        "CreatedSince": created_since(str(image.get("created", ""))),
        "CreatedAt": str(image.get("created", "")),
        "Size": format_bytes(int(image.get("size", 0))),
    }
    references = image.get("references") or ("<none>",)
    return [{**dict(zip(("Repository", "Tag"), split(text), strict=True)), **common} for text in references]


def split(reference: str) -> tuple[str, str]:
    """`docker.io/library/debian:bookworm` → `("debian", "bookworm")`, as people write it."""
    name = reference.partition("@")[0]
    name = name.removeprefix("docker.io/").removeprefix("library/")
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        return name, "<none>"
    return repository, tag


def wanted(row: Mapping[str, str], name: str) -> bool:
    repository, tag = split(name)
    return row["Repository"] == repository and tag in ("<none>", row["Tag"])


def created_since(text: str) -> str:
    """`3 days ago` of an RFC 3339 time."""
    import datetime as dt

    from knarr.model.units import format_ago

    try:
        moment = dt.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return "N/A"
    return format_ago(max(time.time() - moment, 0)) + " ago"


def inspect(context: Context, a: Arguments) -> int:
    found, failed = [], 0
    for name in a.operands:
        try:
            found.append(context.client.image(name))
        except KnarrError as error:
            complain(error)
            failed = 1
    tables.document(found, a.format)
    return failed


def rm(context: Context, a: Arguments) -> int:
    failed = 0
    for name in a.operands:
        try:
            for done in removed(context.client.remove_image(name, force=a.force)):
                say(done)
        except NotFound as error:
            if not a.force:
                complain(error)
                failed = 1
        except KnarrError as error:
            complain(error)
            failed = 1
    return failed


def removed(answer: Any) -> list[str]:
    """What went, whether the daemon lists it bare or under a key."""
    if isinstance(answer, dict):
        return [str(item) for value in answer.values() if isinstance(value, list) for item in value]
    return [str(item) for item in answer or ()]


def tag(context: Context, a: Arguments) -> int:
    context.client.tag(*a.operands)
    return 0


LS = Command(
    ls,
    "list images",
    "[REPOSITORY[:TAG]]",
    (
        Option("--digests", "show manifest digests"),
        tables.FORMAT,
        tables.NO_TRUNC,
        tables.QUIET,
        Option("-a --all", "accepted for docker's sake; all are shown anyway"),
    ),
    complete="image",
)
INSPECT = Command(
    inspect,
    "all there is to know about images, as JSON",
    "IMAGE [IMAGE...]",
    (Option("-f --format", "a template such as '{{.id}}', or json", value="FORMAT"),),
    complete="image",
)
RM = Command(
    rm,
    "remove images, or names of images",
    "IMAGE [IMAGE...]",
    (Option("-f --force", "even if a stopped workload uses it; no error if it isn't there"),),
    complete="image",
)
TAG = Command(tag, "give an image one more name", "IMAGE NEW_NAME", complete="image")
