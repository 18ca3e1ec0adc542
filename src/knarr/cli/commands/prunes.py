"""`prune` of every noun, and `system prune`: what nobody uses goes, asked first, filtered as docker does."""

from __future__ import annotations

from knarr.cli import tables
from knarr.cli.commands.logs import moment
from knarr.cli.context import Context, say
from knarr.cli.options import Arguments, Command, Option
from knarr.model.errors import Invalid
from knarr.model.units import format_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FORCE = Option("-f --force", "don't ask")
FILTER = Option("--filter", tables.FILTER.help, value="KEY=VALUE", many=True)
_NOTES = "Filters: until=24h (or a date), label=NAME[=VALUE], label!=NAME[=VALUE]."


def filters(texts: Iterable[str]) -> Iterator[str]:
    """With `until` as seconds since the epoch: a date means the caller's time zone."""
    for text in texts:
        key, _, value = text.partition("=")
        yield f"until={moment(value)}" if key == "until" and value else text


def _sure(a: Arguments, question: str) -> bool:
    from knarr.cli.prompt import sure

    return bool(a.force) or sure(question)


def _show(kind: str, removed: list[str]) -> None:
    if removed:
        say(f"{kind}:")
        for item in removed:
            say(item)


def workloads(context: Context, a: Arguments) -> int:
    if not _sure(a, "remove every workload that does not run?"):
        return 1
    removed = context.client.prune(tuple(filters(a.filter)))["removed"]
    for name in removed:
        say(name)
    say(f"{len(removed)} removed")
    return 0


def images(context: Context, a: Arguments) -> int:
    what = "every image that no workload uses" if a.all else "every image without a name"
    if not _sure(a, f"remove {what}?"):
        return 1
    before = _used(context)
    for item in context.client.prune_images(unused=a.all, filters=tuple(filters(a.filter)))["removed"]:
        say(item)
    say(f"{format_bytes(max(before - _used(context), 0))} freed")
    return 0


def volumes(context: Context, a: Arguments) -> int:
    what = "every volume that no workload uses" if a.all else "every unused volume without a name"
    if not _sure(a, f"remove {what}, with all that is in it?"):
        return 1
    removed = context.client.prune_volumes(unused=a.all, filters=tuple(filters(a.filter)))["removed"]
    for name in removed:
        say(name)
    say(f"{len(removed)} removed")
    return 0


def system(context: Context, a: Arguments) -> int:
    """Workloads first: they hold images and volumes."""
    wanted = tuple(filters(a.filter))
    if a.volumes and any(text.startswith("until=") for text in wanted):
        raise Invalid(
            "system prune: until and --volumes exclude each other", hint="volumes have no such time"
        )
    items = [
        "every workload that does not run",
        f"every image {'no workload uses' if a.all else 'without a name'}",
    ]
    items += ["every unused volume without a name"] if a.volumes else []
    if not _sure(a, f"remove {', '.join(items)}?"):
        return 1
    before = _used(context)
    _show("workloads", context.client.prune(wanted)["removed"])
    if a.volumes:
        _show("volumes", context.client.prune_volumes(filters=wanted)["removed"])
    _show("images", context.client.prune_images(unused=a.all, filters=wanted)["removed"])
    say(f"{format_bytes(max(before - _used(context), 0))} freed in images")
    return 0


def _used(context: Context) -> int:
    """Bytes of the image store."""
    found = context.client.disk_usage()
    return sum(int(found[key]) for key in ("pool", "blobs", "trees", "index", "maps"))


WORKLOADS = Command(workloads, "remove all workloads that do not run", "", (FILTER, FORCE), notes=_NOTES)
IMAGES = Command(
    images,
    "remove images that nobody needs",
    "",
    (Option("-a --all", "all that no workload uses"), FILTER, FORCE),
    notes=_NOTES,
)
VOLUMES = Command(
    volumes,
    "remove volumes that no workload uses",
    "",
    (Option("-a --all", "those with a name too"), FILTER, FORCE),
    notes="Filters: label=NAME[=VALUE], label!=NAME[=VALUE].",
)
SYSTEM = Command(
    system,
    "remove what nobody uses: workloads that do not run, images, with --volumes volumes",
    "",
    (
        Option("-a --all", "all images that no workload uses"),
        Option("--volumes", "also volumes without a name"),
        FILTER,
        FORCE,
    ),
    notes=_NOTES,
)
