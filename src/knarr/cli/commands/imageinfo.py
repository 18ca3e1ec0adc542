"""`image history`, `image diff`, `image gc`, `system df`: what images are made of and what they take."""

from __future__ import annotations

from knarr.cli import progress, tables
from knarr.cli.commands.images import created_since
from knarr.cli.context import Context, printable, say
from knarr.cli.options import Arguments, Command, Option
from knarr.model.units import format_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

_WIDTH = 45


def history(context: Context, a: Arguments) -> int:
    rows = [_step(step, full=a.no_trunc) for step in context.client.history(a.operands[0])]
    if a.quiet:
        for row in rows:
            say(row["Layer"])
        return 0
    tables.show(rows, ("Layer", "CreatedSince", "CreatedBy", "Size", "Comment"), a.format)
    return 0


def _step(step: Mapping[str, Any], *, full: bool) -> dict[str, str]:
    command = str(step["created_by"])
    return {
        "Layer": tables.short(str(step["layer"]), full=full) or "<none>",
        "CreatedSince": created_since(str(step["created"])),
        "CreatedAt": str(step["created"]),
        "CreatedBy": command if full or len(command) <= _WIDTH else command[: _WIDTH - 1] + "…",
        "Size": format_bytes(int(step["size"])),
        "Comment": str(step["comment"]),
        "Author": str(step["author"]),
    }


def diff(context: Context, a: Arguments) -> int:
    for line in context.client.image_diff(*a.operands):
        say(f"{line['kind']} {printable(line['path'])}")
    return 0


def gc(context: Context, a: Arguments) -> int:
    del a
    say(f"{format_bytes(int(context.client.collect_images()['freed']))} freed")
    return 0


def check(context: Context, a: Arguments) -> int:
    problems: list[Any] = []

    def lines() -> Iterator[dict[str, Any]]:
        for line in context.client.check_images(repair=a.repair):
            if "ready" in line:
                problems.extend(line["problems"])
            else:
                yield {**line, "counted": True}

    progress.show(lines(), quiet=a.quiet)
    for problem in problems:
        say(f"{printable(problem['item'])} {problem['fact']}" + (": repaired" if problem["repaired"] else ""))
        if problem["hint"]:
            say(f"  hint: {printable(problem['hint'])}")
    if not problems:
        say("all is as it should be")
    return 0 if all(problem["repaired"] for problem in problems) else 1


def df(context: Context, a: Arguments) -> int:
    found = context.client.disk_usage()
    if a.format == "json":
        tables.document(found, "json")
        return 0
    if a.verbose:
        _verbose(found)
        return 0
    tables.show(_summary(found), ("Type", "Total", "Active", "Size", "Reclaimable"), a.format)
    return 0


def _summary(found: Mapping[str, Any]) -> list[dict[str, str]]:
    images, workloads = found["images"], found["workloads"]
    alive = sum(row["status"] not in ("created", "exited") for row in workloads)
    taken = found["pool"] + found["blobs"] + found["trees"] + found["index"] + found["maps"]
    return [
        _line("Images", len(images), sum(row["used"] for row in images), taken, found["reclaimable"]),
        _line(
            "Workloads",
            len(workloads),
            alive,
            _sum(workloads, "layer", "logs"),
            found["workloads_reclaimable"],
        ),
    ]


def _line(kind: str, total: int, active: int, size: int, free: int) -> dict[str, str]:
    share = f" ({100 * free // size}%)" if size else ""
    return {
        "Type": kind,
        "Total": str(total),
        "Active": str(active),
        "Size": format_bytes(size),
        "Reclaimable": format_bytes(free) + share,
    }


def _sum(rows: Any, *keys: str) -> int:
    return sum(int(row[key]) for row in rows for key in keys)


def _verbose(found: Mapping[str, Any]) -> None:
    heads = ("IMAGE", "ID", "SIZE", "SHARED", "UNIQUE", "USED")
    rows = [
        (
            ", ".join(row["references"]) or "<none>",
            tables.short(row["id"], full=False),
            *(format_bytes(row[key]) for key in ("size", "shared", "unique")),
            "yes" if row["used"] else "no",
        )
        for row in found["images"]
    ]
    say(tables.table(heads, rows))
    say("")
    heads = ("WORKLOAD", "ID", "STATUS", "WALL", "LAYER", "LOGS")
    rows = [
        (
            row["name"],
            row["id"][:12],
            row["status"],
            row["isolation"],
            format_bytes(row["layer"]),
            format_bytes(row["logs"]),
        )
        for row in found["workloads"]
    ]
    say(tables.table(heads, rows))
    say("")
    for key in ("pool", "blobs", "trees", "index", "maps", "reclaimable"):
        say(f"{key}: {format_bytes(found[key])}")


HISTORY = Command(
    history,
    "how an image was made, newest step first",
    "IMAGE",
    (tables.FORMAT, tables.NO_TRUNC, tables.QUIET),
    complete="image",
)
DIFF = Command(
    diff,
    "files that differ between two images: A added, C changed, D gone",
    "IMAGE OTHER",
    complete="image",
    notes="Compares the indexes of the two; a time alone is no difference.",
)
GC = Command(gc, "give back what no image needs: places in the pool, blobs, what dead pulls left", "")
IMAGE_CHECK = Command(
    check,
    "compare everything stored of images with its digests",
    "",
    (
        Option("--repair", "mend what can be mended: the pool out of the blobs, trees, maps and the index"),
        Option("-q --quiet", "no progress"),
    ),
    notes="Exits with 1 when something is damaged and was not repaired, and tells what to pull again.",
)
DF = Command(
    df,
    "what images and workloads take on the disk",
    "",
    (Option("-v --verbose", "by image, with what is shared, and by workload"), tables.FORMAT),
)
